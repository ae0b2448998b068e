"""tokenizer.json and tokenizer_config.json of model folders, in and out; nothing in them is run."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from ziphius.core.errors import TokenizerError
from ziphius.core.files import write_file
from ziphius.text import special
from ziphius.text.parts import TokenizerParts, detect_chat_format

MAX_BYTES = 64 * 1024 * 1024
_OWN_KEY = "ziphius"


def read_folder(folder: Path) -> TokenizerParts:
    """Read a byte-level BPE; ends of text also come from `generation_config.json`.

    Raises:
        TokenizerError: a file is missing, cut off, over 64 MiB, no JSON, or holds another kind of
            tokenizer.
    """
    backend = _read_backend(folder / "tokenizer.json")
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    config_path = folder / "tokenizer_config.json"
    # A bare tokenizer.json of the family says nothing of its ends, but its names do.
    found = [token if token in added else None for token in special.HEAD_TOKENS]
    config: dict[str, Any] = dict(zip(("bos_token", "eos_token", "pad_token"), found, strict=True))
    if config_path.exists():
        config = _read_json(config_path)
    template = _template(folder, config)
    own = config.get(_OWN_KEY)
    own = own if isinstance(own, dict) else {}
    bos, eos, pad = (_name(config, f"{role}_token", added) for role in ("bos", "eos", "pad"))
    ends = [*([eos] if eos else []), *own.get("eos_tokens", ()), *_further_ends(folder, backend)]
    return TokenizerParts(
        backend=backend,
        bos=bos,
        eos=tuple(dict.fromkeys(end for end in ends if end in added)),
        pad=pad,
        add_bos=bos is not None and _adds_bos(config, backend, bos),
        chat_format=own.get("chat_format", detect_chat_format(template, added)),
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


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise TokenizerError(
            f"{path} is missing. Give a folder that holds a tokenizer.json, or a .gguf file."
        )
    spec = _read_json(path)
    if not isinstance(spec.get("model"), dict):
        raise TokenizerError(f"{path} has no `model`: it is not a tokenizer.json.")
    return backend_of(spec, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise TokenizerError(f"{path} has {size} bytes; at most {MAX_BYTES} are read.")
        text = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is no valid JSON ({error}): it is cut off or not this kind of file. "
            "Copy it again."
        ) from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} holds a {type(data).__name__}, not a JSON object.")
    return data


def _name(config: dict[str, Any], key: str, added: set[str]) -> str | None:
    """Read one special token, written as its text or as an object around it."""
    value = config.get(key)
    name = value.get("content") if isinstance(value, dict) else value
    if name is not None and (not isinstance(name, str) or name not in added):
        raise TokenizerError(
            f"tokenizer_config.json names the {key} {name!r}, which is not among the added tokens "
            "of tokenizer.json. The two files belong to different models."
        )
    return name


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """Find the chat template: a file of its own, or a string or a list in the configuration."""
    path = folder / "chat_template.jinja"
    if path.is_file() and path.stat().st_size <= MAX_BYTES:
        return path.read_text(encoding="utf-8", errors="replace")
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        texts = [entry.get("template") for entry in entries if entry.get("name") == "default"]
        template = texts[0] if texts else None
    return template if isinstance(template, str) else None


def _further_ends(folder: Path, backend: tokenizers.Tokenizer) -> list[str | None]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    found = _read_json(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return [backend.id_to_token(i) for i in ids if isinstance(i, int) and 0 <= i < 2**32]


def _adds_bos(config: dict[str, Any], backend: tokenizers.Tokenizer, bos: str) -> bool:
    """Ask the configuration, or a post-processor that puts the token there (Llama 3)."""
    if "add_bos_token" in config:
        return bool(config["add_bos_token"])
    return backend.encode("", add_special_tokens=True).tokens[:1] == [bos]
