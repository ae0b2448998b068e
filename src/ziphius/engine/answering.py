"""From prompts to the events of their answers: reasoning, content and calls, as they come."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from ziphius.core.errors import ConfigError
from ziphius.engine.answer import Prompt, Reader
from ziphius.engine.engine import Engine
from ziphius.engine.requests import RequestMaker
from ziphius.engine.sampling_params import SamplingParams
from ziphius.engine.text import Ask, TextPiece, stream_text
from ziphius.text.chat import Event
from ziphius.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A prompt, and what is wanted of its answers."""

    prompt: Prompt
    params: SamplingParams
    adapter: str = ""
    """Name of the adapter that answers; empty is the model alone."""
    sequence_id: int = 0
    """Of the first answer; see `Request.sequence_id`."""


@dataclass(frozen=True)
class AnswerPiece:
    """One token of one answer, and what it tells."""

    piece: TextPiece
    events: list[Event]

    @property
    def row(self) -> int:
        """Return which question this answers."""
        return self.piece.row


class _Readers:
    """Makes requests of questions as they are asked for, and reads what comes of them."""

    def __init__(self, maker: RequestMaker) -> None:
        self._maker = maker
        self._readers: dict[tuple[int, int], Reader] = {}

    def asks(self, questions: Iterable[Question | ConfigError]) -> Iterator[Ask | ConfigError]:
        """Make the requests; an error stands for one that cannot be made."""
        for row, question in enumerate(questions):
            if isinstance(question, ConfigError):
                yield question
                continue
            try:
                ask = self._maker.ask(
                    question.prompt,
                    question.params,
                    adapter=question.adapter,
                    sequence_id=question.sequence_id,
                )
            except ConfigError as error:
                yield error
                continue
            for sample in range(ask.request.n):
                self._readers[row, sample] = question.prompt.read()
            yield ask

    def read(self, piece: TextPiece) -> AnswerPiece:
        """Turn the text of a piece into events."""
        key = piece.row, piece.sample
        if key not in self._readers:
            return AnswerPiece(piece, [])
        events = self._readers[key].push(piece.text)
        if piece.finish_reason is not None:
            events += self._readers.pop(key).finish()
        return AnswerPiece(piece, events)


def stream_answers(
    engine: Engine,
    tokenizer: Tokenizer,
    maker: RequestMaker,
    questions: Iterable[Question | ConfigError],
    *,
    keep_errors: bool = False,
) -> Generator[list[AnswerPiece], None, None]:
    """Answer questions, and yield each step's tokens with the events they make.

    Args:
        engine: of the model.
        tokenizer: of the model.
        maker: of this tokenizer.
        questions: taken as the engine has room for them; an error stands for what is no question.
        keep_errors: see `stream_text`.
    """
    readers = _Readers(maker)
    asked = readers.asks(questions)
    with closing(stream_text(engine, tokenizer, asked, keep_errors=keep_errors)) as steps:
        for step in steps:
            yield [readers.read(piece) for piece in step]
