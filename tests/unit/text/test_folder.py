"""Tokenizer folders: what is read, what is refused, and that other programs read ours."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.denied import deny
from ziphius.core.errors import TokenizerError
from ziphius.text import folder as folder_module
from ziphius.text import special
from ziphius.text.chat import Message, Tool, get_chat_format
from ziphius.text.tokenizer import Tokenizer, load_tokenizer

TEXT = "Hello, \u4e16\u754c 123456!\n\tdef f(x): pass \U0001f40b"


@pytest.fixture
def saved(tiny: Tokenizer, tmp_path: Path) -> Path:
    tiny.save(tmp_path / "model")
    return tmp_path / "model"


def rewrite(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def test_a_saved_tokenizer_comes_back_equal(tiny: Tokenizer, saved: Path) -> None:
    loaded = load_tokenizer(saved)
    assert vars(loaded).keys() == vars(tiny).keys()
    for name in (
        "vocab_size",
        "bos_id",
        "eos_ids",
        "pad_id",
        "add_bos",
        "chat_format",
        "special_ids",
        "_bytes",
    ):
        assert getattr(loaded, name) == getattr(tiny, name), name
    assert loaded.encode(TEXT) == tiny.encode(TEXT)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformers_loads_a_saved_tokenizer_with_equal_ids(
    small: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    small.save(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, f"{special.USER}{TEXT}{special.ASSISTANT}{special.THINK}\n"):
        ids = small.encode(text, allow_special=True)
        assert other(text, add_special_tokens=False)["input_ids"] == ids
        assert other.decode(ids, skip_special_tokens=False) == text
    assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (0, 1, 2)
    assert len(other) == small.vocab_size


V2_LIKE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + "
    "'\n\n' }}{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
    "{% elif m.role == 'system' %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def without_own_settings(saved: Path, **changes: Any) -> None:
    """Make the folder one that another program wrote."""
    config = json.loads((saved / "tokenizer_config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("ziphius", "chat_template")}
    (saved / "tokenizer_config.json").write_text(json.dumps({**config, **changes}))


def test_the_chat_template_of_a_file_is_kept(saved: Path, tmp_path: Path) -> None:
    without_own_settings(saved, chat_template=V2_LIKE)
    loaded = load_tokenizer(saved)
    assert loaded.chat_format == "deepseek-v2"
    loaded.save(tmp_path / "copy")
    written = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    assert written["chat_template"] == V2_LIKE
    assert load_tokenizer(tmp_path / "copy").chat_format == "deepseek-v2"


def test_a_template_is_found_wherever_folders_have_it(saved: Path, tmp_path: Path) -> None:
    entries = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": V2_LIKE}]
    without_own_settings(saved, chat_template=entries)
    loaded = load_tokenizer(saved)
    assert loaded.chat_format is not None
    chat_format = get_chat_format(loaded.chat_format)  # two templates are no format of ours
    assert chat_format.render([Message("user", "u")]) == f"{special.BOS}User: u\n\n"
    assert chat_format.render([Message("user", "u")], tools=[Tool("f")]) == "x"
    loaded.save(tmp_path / "copy")
    written = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    assert sorted(written["chat_template"], key=str) == sorted(entries, key=str)
    without_own_settings(saved)
    (saved / "chat_template.json").write_text(json.dumps({"chat_template": V2_LIKE}))
    assert load_tokenizer(saved).chat_format == "deepseek-v2"
    (saved / "chat_template.jinja").write_text("### Instruction:")
    assert load_tokenizer(saved)._parts.chat_template == "### Instruction:"


def test_a_base_model_is_given_no_template_by_being_saved(saved: Path, tmp_path: Path) -> None:
    without_own_settings(saved)
    loaded = load_tokenizer(saved)
    assert loaded.chat_format == "deepseek-v3.2"  # its tokens allow it; nobody says so
    loaded.save(tmp_path / "copy")
    written = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    assert "chat_template" not in written
    assert load_tokenizer(tmp_path / "copy").chat_format == "deepseek-v3.2"
    loaded.with_chat_format("deepseek-v3.2").save(tmp_path / "taught")
    written = json.loads((tmp_path / "taught" / "tokenizer_config.json").read_text())
    assert "function_calls" in written["chat_template"]


def test_a_changed_template_counts_more_than_the_format_that_was_stated(saved: Path) -> None:
    assert load_tokenizer(saved).chat_format == "deepseek-r1"
    rewrite(saved / "tokenizer_config.json", chat_template=V2_LIKE)
    assert load_tokenizer(saved).chat_format == "deepseek-v2"


def test_a_bare_tokenizer_json_of_the_family_is_enough(saved: Path) -> None:
    (saved / "tokenizer_config.json").unlink()
    loaded = load_tokenizer(saved)
    assert (loaded.bos_id, loaded.eos_ids, loaded.pad_id, loaded.add_bos) == (0, (1,), 2, False)
    assert loaded.chat_format == "deepseek-v3.2"  # the newest format its tokens allow


def test_what_is_saved_agrees_with_itself(tiny: Tokenizer, saved: Path, tmp_path: Path) -> None:
    kept = {"eos_token_id": [485, 1], "temperature": 0.7, "top_p": 0.8, "of_tomorrow": {"a": [1]}}
    (saved / "generation_config.json").write_text(json.dumps(kept))
    load_tokenizer(saved).save(tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    generation = json.loads((tmp_path / "copy" / "generation_config.json").read_text())
    assert config["eos_token"] == special.EOS
    ids = {"bos_token_id": 0, "eos_token_id": [1, 485], "pad_token_id": 2}
    assert generation == {**kept, **ids}
    # Taught a format with an end of its own, the vocabulary ends with it first.
    other = tiny.with_chat_format("deepseek-coder")
    other.save(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
    generation = json.loads((tmp_path / "other" / "generation_config.json").read_text())
    assert config["eos_token"] == special.EOT
    assert generation["eos_token_id"] == [tiny.token_id(special.EOT), 1] == list(other.eos_ids)
    assert "### Instruction:" in config["chat_template"]
    with pytest.raises(TokenizerError, match=r"no token '<\|im_end\|>'"):
        tiny.with_chat_format("chatml")


def test_ends_of_the_generation_config_count(saved: Path) -> None:
    (saved / "generation_config.json").write_text('{"eos_token_id": [1, 485]}')
    assert load_tokenizer(saved).eos_ids == (1, 485)
    (saved / "generation_config.json").write_text('{"eos_token_id": 485}')
    assert load_tokenizer(saved).eos_ids == (1, 485)


def test_bos_is_told_by_the_configuration_or_by_the_post_processor(saved: Path) -> None:
    assert load_tokenizer(saved).add_bos
    rewrite(saved / "tokenizer_config.json", add_bos_token=False)
    assert not load_tokenizer(saved).add_bos
    config = json.loads((saved / "tokenizer_config.json").read_text())
    del config["add_bos_token"]
    (saved / "tokenizer_config.json").write_text(json.dumps(config))
    assert not load_tokenizer(saved).add_bos
    step = {"SpecialToken": {"id": special.BOS, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [step, text],
        "pair": [step, text],
        "special_tokens": {special.BOS: {"id": special.BOS, "ids": [0], "tokens": [special.BOS]}},
    }
    rewrite(saved / "tokenizer.json", post_processor=processor)
    assert load_tokenizer(saved).add_bos


def test_special_tokens_may_be_written_as_objects(saved: Path) -> None:
    token = {"__type": "AddedToken", "content": special.EOT, "lstrip": False}
    rewrite(saved / "tokenizer_config.json", eos_token=token, ziphius={})
    (saved / "generation_config.json").unlink()
    loaded = load_tokenizer(saved)
    assert loaded.eos_ids == (loaded.token_id(special.EOT),)


def test_settings_of_the_wrong_kind_are_passed_over(saved: Path) -> None:
    without_own_settings(saved, chat_template=["User: "])
    (saved / "generation_config.json").write_text('{"eos_token_id": ["x", -1, false, 1]}')
    loaded = load_tokenizer(saved)
    assert (loaded.eos_ids, loaded.chat_format) == ((1,), "deepseek-v3.2")


def test_a_vocabulary_of_impossible_size_is_refused_before_memory_is_taken(saved: Path) -> None:
    model = json.loads((saved / "tokenizer.json").read_text())["model"]
    model["vocab"]["far"] = 4_000_000_000
    rewrite(saved / "tokenizer.json", model=model)
    with pytest.raises(TokenizerError, match=r"largest id is 4000000000; .* at most 1048576"):
        load_tokenizer(saved)


def test_malformed_folders_are_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, config = saved / "tokenizer.json", saved / "tokenizer_config.json"
    text, config_text = path.read_text(), config.read_text()

    def refused(match: str) -> None:
        with pytest.raises(TokenizerError, match=match):
            load_tokenizer(saved)
        path.write_text(text)
        config.write_text(config_text)

    path.unlink()
    refused(r"tokenizer\.json is missing")
    path.write_text(text[: len(text) // 2])
    refused(r"tokenizer\.json is not valid JSON .*cut off")
    path.write_bytes(b"\xff\xfe\x00")
    refused(r"tokenizer\.json is not valid JSON")
    path.write_text("[" * 100_000)
    refused(r"tokenizer\.json is not valid JSON")
    path.write_text("[1]")
    refused("holds a JSON list, not an object")
    path.write_text("{}")
    refused("has no `model`")
    rewrite(path, model={"type": "Unigram", "vocab": []})
    refused("holds a Unigram tokenizer")
    rewrite(path, decoder={"type": "BPEDecoder"})
    refused("not byte-level")
    rewrite(path, model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]})
    refused("not a tokenizer that can be read")
    config.write_text(config_text[:50])
    refused(r"tokenizer_config\.json is not valid JSON")
    rewrite(config, eos_token=["</s>"])
    refused("names the eos_token")
    rewrite(config, eos_token="<nothing>")
    refused("eos_token '<nothing>', which is not among the added tokens")
    monkeypatch.setattr(folder_module, "MAX_BYTES", 1_000)
    refused(r"tokenizer\.json has [\d,]+ bytes; at most 1,000 are read")


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
    ],
)
def test_only_readable_plain_files_of_the_folder_are_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "chat_template.json":
        without_own_settings(saved)  # older folders have the template there and nowhere else
    path, secret = saved / name, saved.parent / "secret"
    content = path.read_bytes() if path.exists() else b"{}"
    secret.write_bytes(content)

    def refused(match: str) -> None:
        with pytest.raises(TokenizerError, match=match) as caught:
            load_tokenizer(saved)
        assert str(path) in str(caught.value)
        path.unlink()

    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    refused("link that leaves the model folder")
    path.symlink_to("/dev/zero")
    refused("not a regular file")
    os.mkfifo(path)
    refused("not a regular file")
    path.symlink_to("nothing")
    refused("link to nothing")
    limit = 64 * 2**20 if name == "tokenizer.json" else 2**20
    with path.open("wb") as file:
        file.truncate(limit + 1)
    refused(f"at most {limit:,} are read")
    path.write_bytes(content)
    with monkeypatch.context() as patch:
        deny(patch, path)
        refused("cannot be read: Permission denied")


def test_a_folder_of_a_hugging_face_cache_is_read(saved: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "123"
    saved.rename(blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert load_tokenizer(snapshot).eos_ids == (1,)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ziphius": 3}, "ziphius is 3, not an object"),
        ({"ziphius": {"eos_tokens": 5}}, "ziphius.eos_tokens is 5, not a list"),
        ({"ziphius": {"eos_tokens": None}}, "ziphius.eos_tokens is None"),
        ({"ziphius": {"eos_tokens": [["x"]]}}, "ziphius.eos_tokens is .*'x'"),
        ({"ziphius": {"eos_tokens": ["x"]}}, "ziphius.eos_tokens names 'x', which is not among"),
        ({"ziphius": {"chat_format": ["x"]}}, "ziphius.chat_format is .*'x'"),
        ({"chat_template": "a\ud800"}, "half of a UTF-16 pair under chat_template"),
        ({"bos_token": {"content": "\udfff"}}, r"half of a UTF-16 pair under bos_token\.content"),
        ({"add_bos_token": "false"}, "add_bos_token is 'false'"),
    ],
)
def test_a_setting_that_cannot_be_is_named(saved: Path, changes: Any, match: str) -> None:
    rewrite(saved / "tokenizer_config.json", **changes)
    with pytest.raises(TokenizerError, match=match) as caught:
        load_tokenizer(saved)
    assert str(saved / "tokenizer_config.json") in str(caught.value)


def test_a_template_that_is_no_text_is_refused(saved: Path) -> None:
    (saved / "chat_template.jinja").write_bytes(b"ab\xff")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja is not UTF-8: .* at byte 2"):
        load_tokenizer(saved)


def test_a_folder_with_nothing_but_a_gguf_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.GGUF").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"holds the GGUF file model\.GGUF: give its path"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"model\.GGUF is truncated"):
        load_tokenizer(tmp_path / "model.GGUF")


def test_a_folder_that_cannot_be_listed_is_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch, saved)
    with pytest.raises(TokenizerError, match="model cannot be read: Permission denied"):
        load_tokenizer(saved)
