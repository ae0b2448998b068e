"""The real commands in processes of their own: run, generate, chat, and Ctrl-C in each way."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import save
from ziphius.text.vocabulary import deepseek_tokenizer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-m", "ziphius.cli.main"]
TIMEOUT_S = 120


def ziphius(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        input=stdin,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )


def test_text_and_json_agree_and_the_command_repeats_itself():
    words = ["generate", "v3-tiny", "The deepest-diving whale", "--raw", "--max-new-tokens", "16"]
    text = ziphius(*words, "--seed", "4")
    assert text.returncode == 0
    assert "random weights: a preset, not a trained model" in text.stderr
    assert "16 tokens in" in text.stderr
    document = json.loads(ziphius(*words, "--seed", "4", "--json").stdout)
    [answer] = document["answers"]
    assert answer["text"] == text.stdout.removesuffix("\n")
    assert len(answer["token_ids"]) == 16


def test_what_run_saves_can_be_talked_to(tmp_path):
    run = ziphius("run", "tour", "--out", str(tmp_path / "tour"), "--json")
    assert run.returncode == 0
    families = json.loads(run.stdout)["families"]
    assert {"v2-tiny", "v3-tiny", "coder-tiny"} <= {family["preset"] for family in families}
    saved = str(tmp_path / "tour" / "v3-tiny")
    lines = f"Hello\n/system Be brief.\nAgain\n/save {tmp_path / 'chat.json'}\n"
    chat = ziphius("chat", saved, "--max-new-tokens", "8", stdin=lines)
    assert chat.returncode == 0
    assert "random weights" not in chat.stderr
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]


def test_errors_are_one_line_and_code_2():
    for words, text in [
        (["generate", "no-such-model", "x"], "no-such-model"),
        (["chat", "v3-tiny", "--chat-format", "nonsense"], "nonsense"),
    ]:
        result = ziphius(*words)
        assert result.returncode == 2
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        last_line = result.stderr.splitlines()[-1]
        assert last_line.startswith("ziphius: error: ")
        assert text in last_line


@pytest.fixture(scope="module")
def endless(tmp_path_factory) -> str:
    """A model with room for an answer that lasts however fast it is: pipes fill up behind it."""
    config = derive(get_preset("v3-tiny"), max_position_embeddings=60_000)
    model = Model(config)
    model.initialize(0)
    folder = tmp_path_factory.mktemp("endless") / "model"
    tokenizer = deepseek_tokenizer(config.vocab_size).with_chat_format("deepseek-r1")
    save(model, folder, tokenizer)
    return str(folder)


ENDLESS = ["--ignore-eos", "--max-new-tokens", "50000"]


def test_ctrl_c_ends_generate_with_what_it_has_written(endless):
    process = subprocess.Popen(
        [*COMMAND, "generate", endless, "x", "--raw", *ENDLESS],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert b"tokens in" in errors
    assert b"Stopped." in errors
    assert b"Traceback" not in errors


def test_a_reader_that_leaves_is_no_error():
    line = f"{' '.join(COMMAND)} generate v3-tiny x --raw --max-new-tokens 2000 | head -c 5"
    result = subprocess.run(
        ["bash", "-c", line], env=ENVIRONMENT, capture_output=True, timeout=TIMEOUT_S
    )
    assert len(result.stdout) == 5
    assert b"Traceback" not in result.stderr
    assert b"Exception" not in result.stderr


def test_a_killed_file_of_prompts_goes_on_bit_for_bit(endless, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"Whale {n % 4}"}) + "\n" for n in range(12)))
    words = ["generate", endless, "--prompts", str(source), "--raw", "--ignore-eos"]
    words += ["--max-new-tokens", "40", "--logprobs", "1"]
    whole = ziphius(*words, "--out", "-")
    assert whole.returncode == 0
    # The last rows have no end while the test runs, so that the signals certainly come in time.
    rows = source.read_text().splitlines(keepends=True)
    last = {"prompt": "x", "sampling_params": {"max_tokens": 50_000}}
    source.write_text("".join(rows) + 8 * (json.dumps(last) + "\n"))
    partial = tmp_path / "out.jsonl.partial"
    for wanted, number, code in [(4, signal.SIGKILL, -9), (8, signal.SIGINT, 130), (12, 15, 143)]:
        process = subprocess.Popen(
            [*COMMAND, *words, "--batch-size", str(wanted), "--out", str(out)],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + TIMEOUT_S
        while not partial.exists() or partial.read_bytes().count(b"\n") <= wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, errors
        assert b"Traceback" not in errors
        assert not out.exists()
        partial.write_bytes(partial.read_bytes()[:-5])
    lines = partial.read_text().splitlines()[1:-1]
    expected = whole.stdout.splitlines()
    assert len(lines) == 11
    assert {json.loads(line)["row"]: line for line in lines}.items() <= dict(
        enumerate(expected)
    ).items()


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    line = f"ulimit -f 4; {' '.join(COMMAND)} generate v3-tiny --prompts {tmp_path}/in --raw"
    (tmp_path / "in").write_text("a\nb\nc\n" * 20)
    line += f" --ignore-eos --max-new-tokens 60 --out {tmp_path}/out"
    result = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {line}"],
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last == f"ziphius: error: Cannot write {tmp_path}/out.partial: File too large."
    assert (tmp_path / "out.partial").read_bytes().endswith(b"}\n")
    assert not (tmp_path / "out").exists()


class Terminal:
    """A process that believes it talks to a person."""

    def __init__(self, *words: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(COMMAND[0], [*COMMAND, *words], {**ENVIRONMENT, "TERM": "xterm"})
        self.seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def wait_for(self, text: bytes, *, after: int = 0) -> int:
        """Read until `text` was printed past a place; return the place behind it."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.seen[after:]:
            ready, _, _ = select.select([self._fd], [], [], deadline - time.monotonic())
            assert ready, f"no {text!r} after {self.seen[after:]!r}"
            self.seen += os.read(self._fd, 4096)
        return self.seen.index(text, after) + len(text)

    def exit_code(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves_the_chat(endless):
    terminal = Terminal("chat", endless, *ENDLESS)
    place = terminal.wait_for(b"> ")
    terminal.type(b"Hello\r")
    place = terminal.wait_for(b"thinking", after=place)
    terminal.type(b"\x03")
    place = terminal.wait_for(b"tokens in", after=place)
    place = terminal.wait_for(b"> ", after=place)
    terminal.type(b"/help\r")
    place = terminal.wait_for(b"/reset", after=place)
    place = terminal.wait_for(b"> ", after=place)
    terminal.type(b"Again\r")
    place = terminal.wait_for(b"thinking", after=place)
    terminal.type(b"\x03")
    place = terminal.wait_for(b"tokens in", after=place)
    place = terminal.wait_for(b"> ", after=place)
    terminal.type(b"\x04")
    assert terminal.exit_code() == 0
    assert b"Traceback" not in terminal.seen
