"""Turn token ids into text as they come, never showing half a UTF-8 character."""

import codecs
from collections.abc import Callable


class Detokenizer:
    """Decode one token at a time; what it returns joins to exactly `Tokenizer.decode(ids)`.

    A character whose bytes are spread over several tokens comes out with its last byte; bytes that
    can never become a character come out as U+FFFD. The work per token does not grow.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is now certain, which may be empty."""
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """Return what an unfinished character leaves, as U+FFFD, and start afresh."""
        return self._decoder.decode(b"", final=True)
