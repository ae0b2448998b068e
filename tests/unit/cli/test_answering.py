"""`cli/answering.py`: what a terminal and a pipe are shown, and the options both commands share."""

import io

import pytest
from rich.console import Console

from ziphius.cli.answering import AnswerOptions, AnswerPrinter, Speed, print_text
from ziphius.cli.options import parse_options
from ziphius.core.errors import ConfigError
from ziphius.engine.sampling_params import SamplingParams, StructuredOutputs
from ziphius.text.chat import ContentText, ReasoningText, ToolCallArguments, ToolCallStart


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=40)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(*events) -> tuple[str, str]:
    answer, aside = console(), console()
    printer = AnswerPrinter(answer, aside)
    for event in events:
        printer.show([event])
    printer.end()
    return written(answer), written(aside)


def test_the_answer_stands_alone_on_its_console():
    answer, aside = shown(
        ReasoningText("Let me "), ReasoningText("see."), ContentText("Yes"), ContentText(".")
    )
    assert answer == "Yes.\n"
    assert aside == "thinking\nLet me see.\n\n"


def test_thinking_has_its_heading_once_and_plain_answers_have_none():
    assert shown(ContentText("a"), ContentText("b")) == ("ab\n", "")
    assert shown() == ("", "")
    assert shown(ReasoningText("a"))[1] == "thinking\na\n"


def test_calls_are_shown_beside_the_answer_each_on_its_line():
    answer, aside = shown(
        ToolCallStart(0, "dive"),
        ToolCallArguments(0, '{"depth":'),
        ToolCallArguments(0, " 1}"),
        ToolCallStart(1, "rise"),
        ToolCallArguments(1, "{}"),
    )
    assert answer == ""
    assert aside == 'calls\ndive {"depth": 1}\ncalls\nrise {}\n'


def test_a_model_cannot_send_control_codes_to_a_terminal():
    text = "a\x1b[31mb\x9b2Jc\rd\x07\te\nf [bold]g[/bold]"
    terminal = console(terminal=True)
    print_text(terminal, text)
    assert written(terminal) == "a\ufffd[31mb\ufffd2Jc\ufffdd\ufffd\te\nf [bold]g[/bold]"
    print_text(terminal, "\x1b[31m", "dim")
    assert "\x1b[31m" not in written(terminal)
    assert "\ufffd[31m" in written(terminal)


def test_a_pipe_gets_the_text_as_it_is():
    text = "a\x1b[31mb\r\n" + "long " * 50
    pipe = console()
    print_text(pipe, text, "dim")
    assert written(pipe) == text


def test_options_become_what_a_request_asks_for():
    options = parse_options(
        AnswerOptions,
        ["--temperature", "0.5", "--top-p", "0.9", "--seed", "3", "--stop", "a", "--stop", "b c"],
        prog="x",
        description="",
    )
    assert options.params(7, n=2) == SamplingParams(
        temperature=0.5, top_p=0.9, seed=3, stop=("a", "b c"), max_tokens=7, n=2
    )
    assert AnswerOptions().params(9) == SamplingParams(temperature=0.6, max_tokens=9)


def test_the_form_of_an_answer_may_stand_in_a_file(tmp_path):
    path = tmp_path / "form"
    path.write_bytes(b'\xef\xbb\xbf{"type": "object"}')
    forms = {
        "json_schema": StructuredOutputs(json_schema='{"type": "object"}'),
        "grammar": StructuredOutputs(grammar='{"type": "object"}'),
    }
    for name, form in forms.items():
        assert AnswerOptions(**{name: path}).params(1).structured_outputs == form
        with pytest.raises(ConfigError, match="cannot be read"):
            AnswerOptions(**{name: tmp_path / "none"}).params(1)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        AnswerOptions(grammar=path).params(1)
    assert AnswerOptions(regex="a+").params(1).structured_outputs == StructuredOutputs(regex="a+")
    words = StructuredOutputs(choice=("a", "b"))
    assert AnswerOptions(choice=("a", "b")).params(1).structured_outputs == words


def test_options_without_effect_end_with_code_2(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_options(
            AnswerOptions, ["--temperature", "0", "--top-k", "3"], prog="x", description=""
        )
    assert exit_info.value.code == 2
    assert "top_k would have no effect" in " ".join(capsys.readouterr().err.split())


def test_speed_counts_the_prompt_apart_from_the_rest(monkeypatch):
    clock = iter([100.0, 102.0, 103.0, 104.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    speed = Speed(prompt_tokens=10)
    assert speed.tokens_per_s is None
    for tokens in (4, 3, 2):
        speed.step(tokens)
    assert speed.prompt_s == 2.0
    assert speed.new_tokens == 9
    assert speed.tokens_per_s == 2.5
    assert speed.line() == (
        "prompt 10 tokens, 2.00 s to the first token; 9 tokens in 4.00 s, 2.5 tokens/s"
    )
