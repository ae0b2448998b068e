"""`ziphius chat`: turns, commands and interruptions, with a scripted model."""

import io
import json
import re

import pytest
import torch
from pydantic import ValidationError

from ziphius.cli.chat import Chat, ChatConfig, chat
from ziphius.core.errors import ConfigError
from ziphius.engine.load import Loaded, load_preset
from ziphius.engine.sampling_params import SamplingParams
from ziphius.engine.text import TextPiece
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

    def stream_text(self, engine, tokenizer, asked, *, keep_errors):
        [ask] = asked
        request = ask.request
        self.requests.append(request)
        self.stop = ask.stop
        self.prompts.append(self.loaded.tokenizer.decode(request.prompt_ids))
        answer = self.answers.pop(0)
        text = answer.removesuffix("^C")
        for index, character in enumerate(text):
            reason = "stop" if index == len(text) - 1 and text == answer else None
            yield [TextPiece(0, 0, character, reason)]
        if text != answer:
            raise KeyboardInterrupt


def pipe(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), "utf-8")


@pytest.fixture
def script(loaded, monkeypatch) -> Script:
    script = Script(loaded)
    monkeypatch.setattr("ziphius.engine.load.load_for_inference", lambda name, **options: loaded)
    monkeypatch.setattr("ziphius.engine.answering.stream_text", script.stream_text)
    return script


@pytest.fixture
def talk(script, monkeypatch, capsys):
    def talk(lines: list[str], answers: list[str], **options) -> str:
        script.answers = answers
        monkeypatch.setattr("sys.stdin", pipe("".join(line + "\n" for line in lines).encode()))
        chat(ChatConfig(model="v3-tiny", **options))
        return capsys.readouterr().out

    return talk


@pytest.fixture
def type_(script, monkeypatch, capsys):
    """Talk as a person does, at a terminal; an exception among the lines is a key."""

    def type_(lines: list, answers: list[str], **options) -> str:
        script.answers = answers
        left = iter(lines)

        def press(prompt: str) -> str:
            line = next(left, EOFError)
            if isinstance(line, str):
                return line
            raise line

        terminal = io.StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", terminal)
        monkeypatch.setattr("builtins.input", press)
        chat(ChatConfig(model="v3-tiny", **options))
        return capsys.readouterr().out

    return type_


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
    assert request.sampling == SamplingParams(
        temperature=0.7, min_p=0.1, seed=5, stop=("x",), max_tokens=9
    )
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


def test_save_writes_the_conversation_to_a_new_file_only(script, talk, type_, tmp_path):
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
    before = path.read_text()
    assert "exists already" in type_([f"/save {path}"], [])
    assert "needs the name" in type_(["/save"], [])
    assert path.read_text() == before


def test_exit_leaves_and_what_follows_is_not_sent(script, talk):
    talk(["/exit", "Hi"], [])
    assert script.prompts == []


def test_help_lists_the_commands_and_unknown_ones_point_to_it(talk, type_):
    out = talk(["/help"], [])
    assert all(word in out for word in ("/reset", "/system", "/save", "/exit", "Ctrl-D"))
    assert "no command /quit; /help" in type_(["/quit"], [])


def test_blank_lines_are_skipped_and_a_space_sends_a_slash(script, talk):
    talk(["", "   ", " /exit is a word"], ["a"])
    [prompt] = script.prompts
    assert f"{USER} /exit is a word{ASSISTANT}" in prompt


def test_an_interrupted_answer_stays_and_the_chat_goes_on(script, type_):
    out = type_(["Hi", "Go on"], ["Hm.</think>half an ans^C", "</think>wer"])
    assert "half an ans\n" in out
    assert f"half an ans{EOS}{USER}Go on" in script.prompts[1]


def test_an_answer_interrupted_before_its_first_word_leaves_no_trace(script, type_):
    type_(["Hi", "Hello"], ["^C", "</think>Hey"])
    assert "Hi" not in script.prompts[1]


def test_ctrl_c_behind_an_answer_loses_nothing(script, type_, monkeypatch):
    save = Chat.save

    def interrupted(self, name: str) -> None:
        if name == "x":
            raise KeyboardInterrupt
        save(self, name)

    monkeypatch.setattr(Chat, "save", interrupted)
    type_(["Hi", "/save x", "More"], ["</think>a", "</think>b"])
    assert f"{USER}Hi{ASSISTANT}a{EOS}{USER}More" in script.prompts[1]


def test_ctrl_c_ends_a_pipe(script, talk):
    with pytest.raises(KeyboardInterrupt):
        talk(["Hi", "More"], ["</think>half^C", "</think>b"])
    assert len(script.prompts) == 1


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


def test_an_error_costs_its_line_alone(talk, type_, script, capsys):
    lines = ["/nonsense", "One", "Two", "/reset", "Three"]
    with pytest.raises(SystemExit) as ended:
        talk(lines, ["a", "b"], chat_format="plain")
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert "ziphius: error: there is no command /nonsense; /help lists them\n" in err
    assert "one question" in err
    assert "nonsense" not in out
    assert [prompt.count("Three") for prompt in script.prompts] == [0, 1]
    out = type_([*lines, "/exit"], ["a", "b"], chat_format="plain")
    assert "one question" in out
    assert "no command /nonsense" in out


def test_a_line_that_is_no_text_costs_itself_alone(script, monkeypatch, capsys):
    script.answers = ["a", "b"]
    monkeypatch.setattr(
        "sys.stdin", pipe("O\xf9\r\nbad \xff\n".encode("latin-1") + "O\xf9\r\nWal".encode())
    )
    with pytest.raises(SystemExit) as ended:
        chat(ChatConfig(model="v3-tiny"))
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert err.count("ziphius: error: a line is not UTF-8 text: ") == 2
    assert out.count("to the first token") == 2
    assert "O\xf9<" in script.prompts[0]


def test_ctrl_c_at_the_prompt_asks_and_ctrl_d_leaves(type_):
    assert "Ctrl-D or /exit leaves" in type_([KeyboardInterrupt, EOFError, "Hi"], [])


def test_an_adapter_of_a_chat_has_no_name():
    with pytest.raises(ValidationError, match="a chat has one adapter"):
        ChatConfig(model="v3-tiny", adapter=("a=b",))


def test_later_turns_find_the_earlier_ones_in_the_cache(loaded, monkeypatch, capsys):
    monkeypatch.setattr("ziphius.engine.load.load_for_inference", lambda name, **options: loaded)
    lines = "word " * 40 + "\nAnd?\n"
    monkeypatch.setattr("sys.stdin", pipe(lines.encode()))
    chat(ChatConfig(model="v3-tiny", max_new_tokens=4))
    out = capsys.readouterr().out
    first, second = (line for line in out.splitlines() if "to the first token" in line)
    assert "cached" not in first
    found = re.search(r"prompt (\d+) tokens \((\d+) cached\)", second)
    assert found is not None
    assert int(found[2]) > int(found[1]) / 2


def test_the_engine_is_closed_however_a_chat_ends(talk, script, monkeypatch):
    closed = []
    monkeypatch.setattr("ziphius.engine.engine.Engine.close", lambda self: closed.append(1))
    talk(["Hi"], ["a"])
    talk(["/exit"], [])
    with pytest.raises(SystemExit):
        talk(["/nonsense"], [])
    with pytest.raises(KeyboardInterrupt):
        talk(["Hi"], ["^C"])
    assert len(closed) == 4


@pytest.mark.parametrize("name", ["c[bold].json", "c[x]].json", "~no-such-user.json"])
def test_the_name_of_the_file_is_printed_as_it_is(talk, type_, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name.startswith("~"):
        assert "there is no such user" in type_([f"/save {name}"], [])
    else:
        assert f"Saved in {name}" in talk([f"/save {name}"], [])
        assert json.loads((tmp_path / name).read_text())["messages"] == []
