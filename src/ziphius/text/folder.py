"""tokenizer.json and tokenizer_config.json of model folders, in and out; nothing is run here.

Beside them stand generation_config.json, whose unknown keys are kept, and the chat template, which
older folders have in a file of its own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ziphius.core.errors import TokenizerError
from ziphius.core.files import write_file
from ziphius.core.gguf_header import is_gguf_name
from ziphius.core.reading import file_inside, list_folder, read_object, read_text
from ziphius.text import special
from ziphius.text.chat.packaged import packaged_template
from ziphius.text.parts import TokenizerParts

MAX_BYTES = 64 * 1024 * 1024
MAX_CONFIG_BYTES = 1024 * 1024
_CONFIG_FILE = "tokenizer_config.json"
_GENERATION_FILE = "generation_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_OLD_TEMPLATE_FILE = "chat_template.json"
_OWN_KEY = "ziphius"
_ROLES = ("bos", "eos", "pad")


def read_folder(folder: Path) -> TokenizerParts:
    """Read a byte-level BPE; ends of text also come from `generation_config.json`.

    Raises:
        TokenizerError: a file is missing, cut off, too large, no JSON, a link out of the folder,
            says what cannot be, or holds another kind of tokenizer.
    """
    names = list_folder(folder, TokenizerError)
    backend = _read_backend(folder, names)
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    # A bare tokenizer.json of the family says nothing of its ends, but its names do.
    found = [token if token in added else None for token in special.HEAD_TOKENS]
    config: dict[str, Any] = {f"{k}_token": v for k, v in zip(_ROLES, found, strict=True)}
    if _CONFIG_FILE in names:
        config = _read_config(folder, _CONFIG_FILE)
    templates = _templates(folder, names, config)
    own_ends, own_format = _own_settings(folder, config, added)
    bos, eos, pad = (_name(folder, config, f"{role}_token", added) for role in _ROLES)
    generation = _read_config(folder, _GENERATION_FILE) if _GENERATION_FILE in names else {}
    further = _further_ends(generation, backend)
    ends = [*([eos] if eos else []), *own_ends, *further]
    return TokenizerParts(
        backend=backend,
        bos=bos,
        eos=tuple(dict.fromkeys(end for end in ends if end in added)),
        pad=pad,
        add_bos=bos is not None and _adds_bos(folder, config, backend, bos),
        chat_format=own_format[0] if own_format else None,
        told_by_tokens=not own_format and "default" not in templates,
        chat_template=templates.pop("default", None),
        named_templates=templates,
        generation=generation,
    )


def write_folder(folder: Path, parts: TokenizerParts) -> None:
    """Write the files, each whole or not at all.

    A tokenizer that came with a chat template keeps it; one that speaks a format of ours brings the
    template that writes the same. The first end of text is the one that other programs know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": parts.bos,
        "eos_token": parts.eos[0] if parts.eos else None,
        "pad_token": parts.pad,
        "add_bos_token": parts.add_bos,
        "clean_up_tokenization_spaces": False,
        _OWN_KEY: {"eos_tokens": list(parts.eos)},
    }
    if parts.chat_format is not None or not (parts.chat_template or parts.told_by_tokens):
        config[_OWN_KEY]["chat_format"] = parts.chat_format
    template = written_template(parts)
    if parts.named_templates:
        named = {} if template is None else {"default": template}
        entries = {**named, **parts.named_templates}
        config["chat_template"] = [{"name": k, "template": v} for k, v in entries.items()]
    elif template is not None:
        config["chat_template"] = template
    write_file(folder / "tokenizer.json", parts.backend.to_str())
    write_file(folder / _CONFIG_FILE, _as_json(config))
    write_file(folder / _GENERATION_FILE, _as_json(_generation(parts)))


def written_template(parts: TokenizerParts) -> str | None:
    """Return the template that a tokenizer came with, else the one of the format it speaks."""
    if parts.chat_template is None and parts.chat_format is not None:
        return packaged_template(parts.chat_format, add_bos=parts.add_bos)
    return parts.chat_template


def _as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _generation(parts: TokenizerParts) -> dict[str, Any]:
    """Say how to generate: what the file said, and the special tokens as they are now."""
    ids = [parts.backend.token_to_id(end) for end in parts.eos]
    found = {
        "bos_token_id": None if parts.bos is None else parts.backend.token_to_id(parts.bos),
        "eos_token_id": ids[0] if len(ids) == 1 else ids or None,
        "pad_token_id": None if parts.pad is None else parts.backend.token_to_id(parts.pad),
    }
    return {**parts.generation, **{key: value for key, value in found.items() if value is not None}}


def backend_of(spec: dict[str, Any], origin: Path) -> tokenizers.Tokenizer:
    """Build the library's tokenizer from the content of a tokenizer.json."""
    kind = (spec.get("model") or {}).get("type", "BPE")
    decoder = json.dumps(spec.get("decoder"))
    if kind != "BPE" or '"ByteLevel"' not in decoder:
        raise TokenizerError(
            f"{origin} holds a {kind} tokenizer that is not byte-level. The family and its "
            "students use byte-level BPE, and nothing else is supported."
        )
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{origin} is not a tokenizer that can be read: {error}.") from error


def _read_backend(folder: Path, names: list[str]) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if path.name not in names:
        gguf = [name for name in names if is_gguf_name(name)]
        raise TokenizerError(
            f"{path} is missing. "
            + (f"The folder holds the GGUF file {gguf[0]}: give its path." if gguf else "")
            + ("" if gguf else "Give a folder that holds a tokenizer.json, or a .gguf file.")
        )
    path = file_inside(folder, path.name, TokenizerError)
    spec = read_object(path, MAX_BYTES, TokenizerError)
    if not isinstance(spec.get("model"), dict):
        raise TokenizerError(f"{path} has no `model`: it is not a tokenizer.json.")
    return backend_of(spec, path)


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    return read_object(file_inside(folder, name, TokenizerError), MAX_CONFIG_BYTES, TokenizerError)


def _own_settings(
    folder: Path, config: dict[str, Any], added: set[str]
) -> tuple[list[str], list[str | None]]:
    """Read what `write_folder` keeps: further ends of text, and the chat format if it is there."""
    path = folder / _CONFIG_FILE
    own = config.get(_OWN_KEY, {})
    if not isinstance(own, dict):
        raise TokenizerError(f"{path}: {_OWN_KEY} is {own!r:.80}, not an object.")
    ends = own.get("eos_tokens", [])
    if not isinstance(ends, list) or not all(isinstance(end, str) for end in ends):
        raise TokenizerError(f"{path}: {_OWN_KEY}.eos_tokens is {ends!r:.80}, not a list of texts.")
    strange = [end for end in ends if end not in added]
    if strange:
        raise TokenizerError(
            f"{path}: {_OWN_KEY}.eos_tokens names {strange[0]!r:.80}, which is not among the added "
            "tokens of tokenizer.json."
        )
    chat_format = own.get("chat_format")
    if chat_format is not None and not isinstance(chat_format, str):
        raise TokenizerError(f"{path}: {_OWN_KEY}.chat_format is {chat_format!r:.80}, not a name.")
    return ends, [chat_format] if "chat_format" in own else []


def _name(folder: Path, config: dict[str, Any], key: str, added: set[str]) -> str | None:
    """Read one special token, written as its text or as an object around it."""
    value = config.get(key)
    name = value.get("content") if isinstance(value, dict) else value
    if name is not None and (not isinstance(name, str) or name not in added):
        raise TokenizerError(
            f"{folder / _CONFIG_FILE} names the {key} {name!r:.80}, which is not among the added "
            "tokens of tokenizer.json. The two files belong to different models."
        )
    return name


def _templates(folder: Path, names: list[str], config: dict[str, Any]) -> dict[str, str]:
    """Find the chat templates by name: in files of their own, or in the configuration."""
    found = _named(config.get("chat_template"))
    if not found and _OLD_TEMPLATE_FILE in names:
        found = _named(_read_config(folder, _OLD_TEMPLATE_FILE).get("chat_template"))
    if _TEMPLATE_FILE in names:
        path = file_inside(folder, _TEMPLATE_FILE, TokenizerError)
        found["default"] = read_text(path, MAX_CONFIG_BYTES, TokenizerError)
    return found


def _named(template: Any) -> dict[str, str]:
    """Read a text, a list of objects with name and template, or an object of names."""
    if isinstance(template, str):
        return {"default": template}
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = {str(entry.get("name")): entry.get("template") for entry in entries}
    pairs = template.items() if isinstance(template, dict) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}


def _further_ends(generation: Mapping[str, Any], backend: tokenizers.Tokenizer) -> list[str | None]:
    found = generation.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return [backend.id_to_token(i) for i in ids if type(i) is int and 0 <= i < 2**32]


def _adds_bos(
    folder: Path, config: dict[str, Any], backend: tokenizers.Tokenizer, bos: str
) -> bool:
    """Ask the configuration, or a post-processor that puts the token there (Llama 3)."""
    if "add_bos_token" in config:
        value = config["add_bos_token"]
        if value is not None and not isinstance(value, bool):
            path = folder / _CONFIG_FILE
            raise TokenizerError(f"{path}: add_bos_token is {value!r:.80}, not true or false.")
        return bool(value)
    return backend.encode("", add_special_tokens=True).tokens[:1] == [bos]
