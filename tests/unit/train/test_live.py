import io

import pytest
from rich.console import Console

from ziphius.train.live import PLAIN_EVERY_S, LiveLine, duration, step_text
from ziphius.train.records import Speed


def console(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100, color_system=None)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_file_gets_a_line_now_and_then_and_the_last_one() -> None:
    now = 0.0
    place = console(is_terminal=False)
    line = LiveLine(place, clock=lambda: now)
    for number, seconds in enumerate((0.0, 1.0, PLAIN_EVERY_S, PLAIN_EVERY_S + 1)):
        now = seconds
        line.show(f"step {number}")
    line.close()
    assert output(place).splitlines() == ["step 0", "step 2", "step 3"]


def test_a_message_comes_after_the_line_before_it() -> None:
    place = console(is_terminal=False)
    line = LiveLine(place, clock=lambda: 0.0)
    line.show("step 0")
    line.show("step 1")
    line.message("a measurement")
    line.close()
    assert output(place).splitlines() == ["step 0", "step 1", "a measurement"]


def test_a_terminal_gets_one_line_redrawn() -> None:
    place = console(is_terminal=True)
    line = LiveLine(place)
    line.show("step 1 [bold]")
    line.message("a [warning]")
    line.show("step 2")
    line.close()
    text = output(place)
    assert "step 1 [bold]" in text
    assert "a [warning]" in text
    # One line break after the message, one after the last line; all else is drawn over.
    assert text.count("\n") == 2
    assert "\r\x1b[2Kstep 2\n" in text


def test_quiet_shows_messages_only() -> None:
    place = console(is_terminal=False)
    line = LiveLine(place, is_quiet=True)
    line.show("step 1")
    line.message("a warning")
    line.close()
    assert output(place) == "a warning\n"


def test_the_loss_stands_beside_what_it_has_to_beat() -> None:
    text = step_text(
        step=1_200,
        progress=0.25,
        loss=3.5,
        baselines={"uniform": 8.3178, "unigram": 6.0, "bigram": 4.25},
        speed=Speed(12_345.6, 0.42),
        eta_s=3_725,
    )
    assert text == (
        "step 1,200  25 %  loss 3.5000 (ln V 8.32, bigram 4.25)  12,346 tokens/s  MFU 42 %  "
        "ETA 1:02:05"
    )
    bare = step_text(step=1, progress=0.0, loss=1.0, baselines={}, speed=Speed(10.0), eta_s=5.0)
    assert bare == "step 1  0 %  loss 1.0000  10 tokens/s  ETA 0:05"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (-3, "0:00"), (36_000, "10:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
