"""Text out of tokens as they come: whole characters only, and nothing of a stop string shown."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.engine.engine import Engine
from ziphius.engine.sequence import FinishReason, Request, StepOutput
from ziphius.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ask:
    """A request, and the strings that end its samples."""

    request: Request
    stop: Sequence[str] = ()
    """The string and all after it are not shown."""
    min_tokens: int = 0
    """Of a sample, before a stop string counts."""


@dataclass(frozen=True)
class TextPiece:
    """One token and the text it releases, which is empty while a character or stop is undecided."""

    row: int
    """Which of what was asked."""
    sample: int
    """Which of its n."""
    text: str
    finish_reason: FinishReason | None
    """Set with the last piece of a sample: `stop` for a stop string too."""
    output: StepOutput | None = None
    """The token and all else that the engine says of it; None where a request was refused."""
    error: str | None = None
    """Why, where the reason is `error`."""


class StopStrings:
    """Pass text through until one of the strings is complete; the string and all after it vanish.

    Holds back the longest end of the text that may still become a stop string, and no more. The
    string that is complete first wins, so that cutting the text differently changes nothing.

    Args:
        strings: to look for.
        min_pushes: let this many pieces pass as they are.
    """

    def __init__(self, strings: Sequence[str], min_pushes: int = 0) -> None:
        if "" in strings:
            raise ConfigError("a stop string is empty: it would end every text before it starts")
        self.strings = tuple(strings)
        self._passing = min_pushes
        self._held = ""
        self.found = False
        """True once a stop string was complete."""

    def push(self, text: str) -> str:
        """Take more text; return what can be shown now."""
        if self.found:
            return ""
        if self._passing:
            self._passing -= 1
            return text
        self._held += text
        hits = [
            (start + len(string), start)
            for string in self.strings
            if (start := self._held.find(string)) >= 0
        ]
        if hits:
            self.found = True
            _, start = min(hits)
            shown, self._held = self._held[:start], ""
            return shown
        keep = max((_overlap(self._held, string) for string in self.strings), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """End the text; return what was held back for a stop string that did not come."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of `text` that `string` begins with."""
    longest = min(len(text), len(string) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(string[:size])), 0)


class _Sample:
    """The text of one sample, as far as it is decided."""

    def __init__(self, row: int, ask: Ask, tokenizer: Tokenizer) -> None:
        self.row, self._stop_ids = row, ask.request.stop_ids
        self._detokenizer = tokenizer.detokenizer()
        self.stops = StopStrings(ask.stop, ask.min_tokens)

    def push(self, output: StepOutput) -> TextPiece:
        """Take what a step did to the sample."""
        token_id, reason = output.token_id, output.finish_reason
        hidden = token_id is None or (reason is not None and token_id in self._stop_ids)
        text = "" if hidden or token_id is None else self._detokenizer.push(token_id)
        if reason is not None:
            text += self._detokenizer.flush()
        shown = self.stops.push(text)
        if self.stops.found:
            reason = "stop"
        elif reason is not None:
            shown += self.stops.flush()
        return TextPiece(self.row, output.sample, shown, reason, output, output.error)


def stream_text(
    engine: Engine,
    tokenizer: Tokenizer,
    asked: Iterable[Ask | ConfigError],
    *,
    keep_errors: bool = False,
) -> Generator[list[TextPiece], None, None]:
    """Run requests, and yield each step's tokens together with their text.

    A token of `Request.stop_ids` shows no text; other special tokens show theirs, because chat
    formats are parsed from them. Close the iterator to stop early.

    Args:
        engine: that runs nothing else meanwhile.
        tokenizer: of its model.
        asked: what to run, taken as the engine has room for it; an error stands for what could not
            even become a request.
        keep_errors: end a sample that goes wrong, or a request that is refused, with reason
            `error`, which its piece tells; by default that is raised, and ends all of them.

    Raises:
        ConfigError: a request can never work.
        CheckpointError: the model fails on a sample.
    """
    assert not engine.has_work, "the engine runs something else"
    running = _Running(engine, tokenizer, keep_errors=keep_errors)
    left = enumerate(asked)
    try:
        while (refused := running.fill(left)) or engine.has_work:
            if pieces := refused + (running.step() if engine.has_work else []):
                yield pieces
    finally:
        running.cancel()


class _Running:
    """What an engine is at, by the number of the request."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, keep_errors: bool) -> None:
        self._engine, self._tokenizer, self._keep_errors = engine, tokenizer, keep_errors
        self._samples: dict[tuple[int, int], _Sample] = {}

    def fill(self, left: Iterator[tuple[int, Ask | ConfigError]]) -> list[TextPiece]:
        """Keep as many waiting as can be admitted at once; return what was refused."""
        refused = []
        while self._engine.num_waiting < self._engine.config.max_num_seqs:
            row, ask = next(left, (-1, None))
            if ask is None:
                break
            try:
                self._add(row, ask)
            except ConfigError as error:
                if not self._keep_errors:
                    raise
                refused.append(TextPiece(row, 0, "", "error", None, str(error)))
        return refused

    def _add(self, row: int, ask: Ask | ConfigError) -> None:
        if isinstance(ask, ConfigError):
            raise ask
        samples = [_Sample(row, ask, self._tokenizer) for _ in range(ask.request.n)]
        number = self._engine.add(ask.request)
        self._samples.update({(number, n): sample for n, sample in enumerate(samples)})

    def step(self) -> list[TextPiece]:
        """Run one step of the engine."""
        pieces = []
        for output in self._engine.step():
            key = (output.request_id, output.sample)
            if key not in self._samples:
                continue  # came with the end of the stop string, out of the same step
            sample = self._samples[key]
            if output.error is not None and not self._keep_errors:
                raise CheckpointError(f"prompt {sample.row}: {output.error}")
            piece = sample.push(output)
            if piece.finish_reason is not None:
                if output.finish_reason is None:
                    self._engine.end(*key)
                del self._samples[key]
            pieces.append(piece)
        return pieces

    def cancel(self) -> None:
        """End what still runs."""
        for number in {number for number, _ in self._samples}:
            self._engine.cancel(number)
