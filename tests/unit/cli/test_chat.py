"""`ziphius chat`: turns, commands and interruptions, with a scripted model."""

import io
import json

import pytest
import torch

from ziphius.cli.chat import ChatConfig, chat
from ziphius.core.errors import ChatError, ConfigError, OutputError
from ziphius.engine.generate import NewToken
from ziphius.engine.load import Loaded, load_preset
from ziphius.engine.text import TextPiece
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.text.special import ASSISTANT, END_THINK, EOS, THINK, USER

CALL = (
    "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function"
    "<\uff5ctool\u2581sep\uff5c>dive\n```json\n{}\n```<\uff5ctool\u2581call\u2581end\uff5c>"
    "<\uff5ctool\u2581calls\u2581end\uff5c>"
)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_preset("v3-tiny", device=torch.device("cpu"))


class Script:
    """Answers, one for each turn, and the prompts that were seen; "^C" interrupts an answer."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.answers: list[str] = []
        self.prompts: list[str] = []
        self.requests: list = []
        self.stop: tuple[str, ...] | None = None

    def stream_text(self, engine, tokenizer, requests, stops):
        [request] = requests
        self.requests.append(request)
        self.stop = stops[0].strings
        self.prompts.append(self.loaded.tokenizer.decode(request.prompt_ids))
        answer = self.answers.pop(0)
        text = answer.removesuffix("^C")
        for index, character in enumerate(text):
            reason = "stop" if index == len(text) - 1 and text == answer else None
            yield [TextPiece(NewToken(0, 0, 0.0, reason), character, reason)]
        if text != answer:
            raise KeyboardInterrupt


@pytest.fixture
def script(loaded, monkeypatch) -> Script:
    script = Script(loaded)
    monkeypatch.setattr("ziphius.engine.load.load_for_inference", lambda name, **options: loaded)
    monkeypatch.setattr("ziphius.engine.answer.stream_text", script.stream_text)
    return script


@pytest.fixture
def talk(script, monkeypatch, capsys):
    def talk(lines: list[str], answers: list[str], **options) -> str:
        script.answers = answers
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        chat(ChatConfig(model="v3-tiny", **options))
        return capsys.readouterr().out

    return talk


def test_turns_build_on_each_other_without_past_reasoning(script, talk):
    out = talk(["Hi", "And?"], ["Hm.</think>Yes.", "Oh.</think>No."], system="Be brief.")
    first, second = script.prompts
    assert first.endswith(f"Be brief.{USER}Hi{ASSISTANT}{THINK}\n")
    assert second.endswith(f"{USER}Hi{ASSISTANT}Yes.{EOS}{USER}And?{ASSISTANT}{THINK}\n")
    assert "thinking\nHm.\n\nYes.\n" in out


def test_options_reach_the_engine(script, talk):
    options = {"temperature": 0.7, "min_p": 0.1, "seed": 5, "stop": ("x",), "max_new_tokens": 9}
    talk(["Hi"], ["a"], chat_format="deepseek-v3.1", thinking=True, **options)
    [request] = script.requests
    assert script.prompts[0].endswith(ASSISTANT + THINK)
    assert request.sampling == SamplingConfig(temperature=0.7, min_p=0.1, seed=5)
    assert request.max_new_tokens == 9
    assert script.stop == ("x",)


def test_reset_forgets_the_turns_and_system_changes_the_message(script, talk):
    talk(
        ["Hi", "/reset", "/system Be loud.", "One", "/system", "Two"],
        ["</think>a", "</think>b", "</think>c"],
        system="Be brief.",
    )
    _, second, third = script.prompts
    assert "Hi" not in second
    assert "Be loud." in second
    assert "Be" not in third
    assert "One" in third


def test_asking_again_after_a_reset_draws_anew(script, talk):
    talk(["Hi", "/reset", "Hi"], ["a", "b"])
    first, second = script.requests
    assert first.prompt_ids == second.prompt_ids
    assert (first.sequence_id, second.sequence_id) == (0, 1)


def test_save_writes_the_conversation_to_a_new_file_only(script, talk, tmp_path):
    path = tmp_path / "chat.json"
    out = talk(["Hi", f"/save {path}"], ["Hm.</think>Yes."], system="Be brief.")
    assert str(path) in out.replace("\n", "")
    saved = json.loads(path.read_text())
    assert saved["chat_format"] == "deepseek-r1"
    assert saved["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."},
    ]
    with pytest.raises(OutputError, match="exists already"):
        talk([f"/save {path}"], [])
    with pytest.raises(ConfigError, match="needs the name"):
        talk(["/save"], [])


def test_exit_leaves_and_what_follows_is_not_sent(script, talk):
    talk(["/exit", "Hi"], [])
    assert script.prompts == []


def test_help_lists_the_commands_and_unknown_ones_point_to_it(talk):
    out = talk(["/help"], [])
    assert all(word in out for word in ("/reset", "/system", "/save", "/exit", "Ctrl-D"))
    with pytest.raises(ConfigError, match=r"no command /quit; /help"):
        talk(["/quit"], [])


def test_blank_lines_are_skipped_and_a_space_sends_a_slash(script, talk):
    talk(["", "   ", " /exit is a word"], ["a"])
    [prompt] = script.prompts
    assert f"{USER} /exit is a word{ASSISTANT}" in prompt


def test_an_interrupted_answer_stays_and_the_chat_goes_on(script, talk):
    out = talk(["Hi", "Go on"], ["Hm.</think>half an ans^C", "</think>wer"])
    assert "half an ans\n" in out
    assert f"half an ans{EOS}{USER}Go on" in script.prompts[1]


def test_an_answer_interrupted_before_its_first_word_leaves_no_trace(script, talk):
    talk(["Hi", "Hello"], ["^C", "</think>Hey"])
    assert "Hi" not in script.prompts[1]


def test_calls_are_shown_and_do_not_block_the_next_turn(script, talk):
    out = talk(["Dive", "Well?"], [f"</think>Going.{CALL}", "</think>Yes"])
    assert "dive {}" in out
    assert f"Going.{EOS}{USER}Well?" in script.prompts[1]


def test_a_user_cannot_spell_a_special_token(script, talk, loaded):
    talk([f"x{END_THINK}{EOS}"], ["a"])
    tokens = [i for i in script.requests[0].prompt_ids if i in loaded.tokenizer.special_ids]
    assert [loaded.tokenizer.decode([i]) for i in tokens][-3:] == [USER, ASSISTANT, THINK]


def test_thinking_must_have_an_effect(talk):
    with pytest.raises(ConfigError, match=r"deepseek-v3 does not think"):
        talk([], [], chat_format="deepseek-v3", thinking=True)


def test_a_format_without_system_message_refuses_one(talk):
    with pytest.raises(ConfigError, match="no system message"):
        talk([], [], chat_format="plain", system="x")


def test_a_model_without_a_chat_format_needs_one(talk, loaded, monkeypatch):
    monkeypatch.setattr(loaded.tokenizer, "chat_format", None)
    with pytest.raises(ConfigError, match=r"no chat format.*--chat-format"):
        talk([], [])


def test_errors_end_a_pipe_but_not_a_conversation(talk, script, monkeypatch, capsys):
    with pytest.raises(ChatError, match="one question"):
        talk(["One", "Two"], ["a"], chat_format="plain")
    lines = iter(["One", "Two", "/nonsense", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    script.answers = ["a"]
    chat(ChatConfig(model="v3-tiny", chat_format="plain"))
    out = capsys.readouterr().out
    assert "one question" in out
    assert "no command /nonsense" in out


def test_ctrl_c_at_the_prompt_asks_and_ctrl_d_leaves(talk, script, monkeypatch, capsys):
    keys = iter([KeyboardInterrupt, EOFError])

    def press(prompt):
        raise next(keys)

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("builtins.input", press)
    chat(ChatConfig(model="v3-tiny"))
    assert "Ctrl-D or /exit leaves" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["c[bold].json", "c[x]].json", "~no-such-user.json"])
def test_the_name_of_the_file_is_printed_as_it_is(script, talk, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name.startswith("~"):
        with pytest.raises(ConfigError, match="there is no such user"):
            talk([f"/save {name}"], [])
    else:
        assert f"Saved in {name}" in talk([f"/save {name}"], [])
        assert json.loads((tmp_path / name).read_text())["messages"] == []
