import os
import signal
import threading

import pytest

from ziphius.train.interrupt import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_acts(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    before = signal.signal(number, lambda *_: seen.append("acted"))
    try:
        with stop_requests() as request:
            assert request.signal is None
            os.kill(os.getpid(), number)
            assert request.signal == number
            assert seen == []
            assert f"{number.name}: saving after this step" in capsys.readouterr().err
            os.kill(os.getpid(), number)
            assert seen == ["acted"]
        os.kill(os.getpid(), number)
        assert seen == ["acted", "acted"]
    finally:
        signal.signal(number, before)


def test_handlers_come_back_without_a_signal_too() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_requests():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_never_asked() -> None:
    seen = []

    def work() -> None:
        with stop_requests() as request:
            seen.append(request.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
