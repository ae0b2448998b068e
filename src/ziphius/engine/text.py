"""Text out of tokens as they come: whole characters only, and nothing of a stop string shown."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from ziphius.core.errors import ConfigError
from ziphius.engine.engine import Engine
from ziphius.engine.generate import Generation, NewToken
from ziphius.engine.sequence import FinishReason, Request
from ziphius.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextPiece:
    """One token and the text it releases, which is empty while a character or stop is undecided."""

    token: NewToken
    text: str
    finish_reason: FinishReason | None
    """Set with the last piece of a sequence: `stop` for a stop string too."""

    @property
    def row(self) -> int:
        """Return which request this belongs to."""
        return self.token.row


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


def stream_text(
    engine: Engine,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    stops: Sequence[StopStrings],
    *,
    keep_errors: bool = False,
) -> Generator[list[TextPiece], None, None]:
    """Run requests of one sample each, and yield each step's tokens together with their text.

    A token of `Request.stop_ids` shows no text; other special tokens show theirs, because chat
    formats are parsed from them. Close the iterator to stop early.

    Args:
        engine: that runs nothing else meanwhile.
        tokenizer: of its model.
        requests: what to run.
        stops: one for each request.
        keep_errors: see `Generation`.
    """
    detokenizers = [tokenizer.detokenizer() for _ in requests]
    with Generation(engine, requests, keep_errors=keep_errors) as steps:
        for step in steps:
            pieces = []
            for token in step:
                row = token.row
                if stops[row].found:
                    continue  # came with the end of the stop string, out of the same step
                ended = token.finish_reason is not None
                has_stopped = ended and token.token_id in requests[row].stop_ids
                hidden = has_stopped or token.finish_reason == "error"
                text = "" if hidden else detokenizers[row].push(token.token_id)
                if ended:
                    text += detokenizers[row].flush()
                shown = stops[row].push(text)
                if stops[row].found:
                    steps.stop(row)
                elif ended:
                    shown += stops[row].flush()
                finish_reason = "stop" if stops[row].found else token.finish_reason
                pieces.append(TextPiece(token, shown, finish_reason))
            yield pieces
