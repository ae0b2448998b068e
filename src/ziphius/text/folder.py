"""tokenizer.json and tokenizer_config.json of model folders, in and out; nothing in them is run."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from ziphius.core.errors import TokenizerError
from ziphius.core.files import write_file
from ziphius.core.gguf_header import is_gguf_name
from ziphius.core.reading import file_inside, list_folder, read_object, read_text
from ziphius.text import special
from ziphius.text.parts import TokenizerParts, detect_chat_format

MAX_BYTES = 64 * 1024 * 1024
MAX_CONFIG_BYTES = 1024 * 1024
_CONFIG_FILE = "tokenizer_config.json"
_GENERATION_FILE = "generation_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
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
    template = _template(folder, names, config)
    own_ends, own_format = _own_settings(folder, config, added)
    bos, eos, pad = (_name(folder, config, f"{role}_token", added) for role in _ROLES)
    further = _further_ends(folder, backend) if _GENERATION_FILE in names else []
    ends = [*([eos] if eos else []), *own_ends, *further]
    return TokenizerParts(
        backend=backend,
        bos=bos,
        eos=tuple(dict.fromkeys(end for end in ends if end in added)),
        pad=pad,
        add_bos=bos is not None and _adds_bos(folder, config, backend, bos),
        chat_format=own_format[0] if own_format else detect_chat_format(template, added),
        chat_template=template,
    )


def write_folder(folder: Path, parts: TokenizerParts) -> None:
    """Write the two files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": parts.bos,
        "eos_token": parts.eos[0] if parts.eos else None,
        "pad_token": parts.pad,
        "add_bos_token": parts.add_bos,
        "clean_up_tokenization_spaces": False,
        _OWN_KEY: {"chat_format": parts.chat_format, "eos_tokens": list(parts.eos)},
    }
    if parts.chat_template is not None:
        config["chat_template"] = parts.chat_template
    write_file(folder / "tokenizer.json", parts.backend.to_str())
    write_file(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False))


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


def _template(folder: Path, names: list[str], config: dict[str, Any]) -> str | None:
    """Find the chat template: a file of its own, or a string or a list in the configuration."""
    if _TEMPLATE_FILE in names:
        path = file_inside(folder, _TEMPLATE_FILE, TokenizerError)
        return read_text(path, MAX_CONFIG_BYTES, TokenizerError)
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        texts = [entry.get("template") for entry in entries if entry.get("name") == "default"]
        template = texts[0] if texts else None
    return template if isinstance(template, str) else None


def _further_ends(folder: Path, backend: tokenizers.Tokenizer) -> list[str | None]:
    found = _read_config(folder, _GENERATION_FILE).get("eos_token_id")
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
