"""Our own formats as Jinja templates, for the programs that read what we save.

`templates/<format>.jinja` writes what the format of that name writes; tests hold the two together,
through transformers too. They take `thinking` (or `enable_thinking`) and tools as the format does.
"""

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).with_name("templates")


_BEGIN = "{{- bos_token -}}\n"
_BEGIN_AS_VOCABULARY = ("plain",)
"""Formats that leave it to the vocabulary whether a token begins the text."""


def packaged_template(name: str, *, add_bos: bool = False) -> str | None:
    """Return the template of a format, None if there is no format of that name here.

    Args:
        name: of the format.
        add_bos: the vocabulary begins each text with a token of its own.
    """
    text = packaged_templates().get(name)
    begins = add_bos and name in _BEGIN_AS_VOCABULARY
    return _BEGIN + text if begins and text is not None else text


def packaged_format(text: str) -> str | None:
    """Name the format that a template of ours belongs to, None if it is not one of them."""
    for name in packaged_templates():
        if text in (packaged_template(name), packaged_template(name, add_bos=True)):
            return name
    return None


@cache
def packaged_templates() -> dict[str, str]:
    """Return all templates by the names of their formats."""
    paths = sorted(_FOLDER.glob("*.jinja"))
    return {path.stem: path.read_text(encoding="utf-8").removesuffix("\n") for path in paths}
