from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from ziphius.core.errors import TokenizerError
from ziphius.data import encode
from ziphius.data.document import Document
from ziphius.data.encode import Encoder, EncodingPool, chunks, id_type
from ziphius.data.fim import Fim
from ziphius.text.tokenizer import Tokenizer


def documents(count: int) -> Iterator[Document]:
    for number in range(count):
        yield Document(f"{number}.py", f"def f{number}():\n    return {number}\n" * 5, is_code=True)


def test_a_document_stands_between_its_special_tokens(tokenizer: Tokenizer) -> None:
    (ids,) = Encoder(tokenizer, Fim()).encode([Document("a", "hello")])
    assert ids.tolist() == [tokenizer.bos_id, *tokenizer.encode("hello"), tokenizer.eos_ids[0]]


def test_text_that_spells_a_special_token_does_not_become_it(tokenizer: Tokenizer) -> None:
    eos = tokenizer.decode(tokenizer.eos_ids)
    (ids,) = Encoder(tokenizer, Fim()).encode([Document("a", f"{eos}x")])
    assert ids.tolist().count(tokenizer.eos_ids[0]) == 1


def test_order_is_kept_where_some_are_cut_and_some_are_not(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, Fim(rate=0.5))
    together = encoder.encode(list(documents(20)))
    alone = [encoder.encode([document])[0] for document in documents(20)]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]


@pytest.mark.parametrize(
    ("vocab_size", "expected"), [(65_536, np.uint16), (65_537, np.uint32), (300, np.uint16)]
)
def test_ids_take_as_little_room_as_they_can(vocab_size: int, expected: type) -> None:
    assert id_type(vocab_size) is expected


def test_any_number_of_processes_gives_the_same(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "CHUNK_CHARACTERS", 500)
    assert len(list(chunks(documents(40)))) > 5
    found: list[list[tuple[str, list[int]]]] = []
    for processes in (0, 2):
        with EncodingPool(tokenizer, processes) as pool:
            for fim in (Fim(rate=0.5, spm_share=0.5), Fim()):
                pairs = pool.encode(documents(40), fim)
                found.append([(document.key, ids.tolist()) for document, ids in pairs])
    assert found[:2] == found[2:]
    assert found[0] != found[1]
    assert [len(pairs) for pairs in found] == [40] * 4


def test_a_vocabulary_without_an_end_is_refused(tokenizer: Tokenizer) -> None:
    endless = Tokenizer(replace(tokenizer._parts, eos=()))
    with pytest.raises(TokenizerError, match="no end of text"):
        Encoder(endless, Fim())


def test_fim_needs_its_tokens(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "has_token", lambda self, text: False)
    Encoder(tokenizer, Fim())
    with pytest.raises(TokenizerError, match="no fill-in-the-middle tokens"):
        Encoder(tokenizer, Fim(rate=0.1))
