import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius.core.errors import ConfigError
from ziphius.data.config import OverLong
from ziphius.data.conversation_encode import EncodedConversation, Encoding
from ziphius.data.conversations import (
    ConversationLoader,
    Conversations,
    encode_conversations,
    fill_rows,
    pack,
    validation_batches,
)
from ziphius.data.errors import DataError
from ziphius.data.messages import Conversation
from ziphius.data.row_report import RowReport
from ziphius.data.think_blocks import READ
from ziphius.text.chat import Message, get_chat_format
from ziphius.text.vocabulary import deepseek_tokenizer

TOKENIZER = deepseek_tokenizer(512)
FORMAT = get_chat_format("deepseek-v3")


def made(*lengths: int, seq_len: int = 16) -> Conversations:
    """Conversations of these lengths; conversation i is made of id i + 1, its last half learned."""
    return Conversations(
        tuple(
            EncodedConversation(
                np.full(length, i + 1), np.arange(length) >= length // 2, bytes_count=length
            )
            for i, length in enumerate(lengths)
        ),
        seq_len,
    )


def talk(question: str, answer: str, line: int = 1) -> Conversation:
    return Conversation(
        f"f, line {line}", (Message("user", question), Message("assistant", answer))
    )


def encode(*talks: Conversation, seq_len: int = 64, over_long: OverLong = "skip") -> Conversations:
    return encode_conversations(talks, TOKENIZER, FORMAT, Encoding(seq_len, over_long))


def test_what_assistants_write_is_learned() -> None:
    [entry] = encode(talk("why?", "because")).kept
    learned = TOKENIZER.decode(entry.ids_T[entry.loss_mask_T].tolist())
    assert learned == "because" + TOKENIZER.decode([TOKENIZER.eos_ids[0]])
    assert "why?" in TOKENIZER.decode(entry.ids_T[~entry.loss_mask_T].tolist())
    assert entry.bytes_count == len("because")


def test_over_long_conversations_are_skipped_cut_or_refused() -> None:
    talks = talk("a", "b" * 4), talk("c", "d" * 400, line=2)
    skipped = encode(*talks)
    assert (len(skipped.kept), skipped.too_long) == (1, 1)
    assert skipped.longest > 200
    cut = encode(*talks, over_long="cut")
    assert [len(entry.ids_T) for entry in cut.kept][1] == 64
    assert cut.kept[1].loss_mask_T[-1]
    with pytest.raises(DataError, match=r"f, line 2: \d+ tokens, and a row has 64"):
        encode(*talks, over_long="refuse")
    # A cut that leaves nothing to learn leaves nothing.
    nothing = encode(talk("q" * 400, "a"), over_long="cut")
    assert (nothing.kept, nothing.unanswered, nothing.too_long) == ((), 1, 1)


def test_a_conversation_that_the_format_cannot_say_is_named_or_skipped() -> None:
    messages = Message("user", "a"), Message("assistant", "b"), Message("assistant", "c")
    bad = Conversation("f, line 7", messages)
    with pytest.raises(DataError, match="f, line 7: Two assistant messages"):
        encode(bad)
    report = RowReport(strict=False, max_bad_share=0.5)
    talks = bad, talk("a", "b"), Conversation("f, line 9", (), text="\ud800")
    found = encode_conversations(talks, TOKENIZER, FORMAT, Encoding(64), report)
    assert len(found.kept) == found.sources == 1
    assert report.skipped == 2
    # What is too long is no bad row: over_long says what becomes of it.
    refusing = Encoding(64, "refuse")
    with pytest.raises(DataError, match="and a row has 64"):
        encode_conversations(
            [talk("a", "b" * 400)], TOKENIZER, FORMAT, refusing, RowReport(strict=False)
        )


def test_reasoning_in_a_content_is_learned_as_reasoning() -> None:
    r1, ask = get_chat_format("deepseek-r1"), Message("user", "2+3?")
    inline = Message("assistant", "<think>\nadd them\n</think>\n\n5")
    field = Message("assistant", "5", "add them")
    read, meant, spelled = (
        encode_conversations(
            [Conversation("f, line 1", (ask, message, ask, message))],
            TOKENIZER,
            r1,
            Encoding(64, think_blocks=think_blocks),
        )
        for message, think_blocks in ((inline, "parse"), (field, "parse"), (inline, "text"))
    )
    assert read.fingerprint == meant.fingerprint
    assert read.changes == {READ: 2}
    assert (read.sources, len(read.kept)) == (1, 2)
    think = TOKENIZER.token_id("<think>")
    assert [think in entry.ids_T for entry in (*read.kept, *spelled.kept)] == [True, True, False]


def test_running_text_is_a_sample() -> None:
    [entry] = encode(Conversation("f, line 1", (), text="Whales dive.")).kept
    assert entry.loss_mask_T.tolist() == [False] + [True] * (len(entry.ids_T) - 1)
    assert entry.bytes_count == len("Whales dive.")


def test_turns_that_are_context_only_are_not_learned() -> None:
    messages = (*talk("a", "bad").messages, *talk("c", "good").messages)
    [entry] = encode(Conversation("f, line 1", messages, masked_turns=frozenset((1,)))).kept
    assert TOKENIZER.decode(entry.ids_T[entry.loss_mask_T].tolist()).startswith("good")
    nothing = encode(Conversation("f, line 1", messages, masked_turns=frozenset((1, 3))))
    assert (nothing.kept, nothing.unanswered, nothing.sources) == ((), 1, 0)


@given(st.lists(st.integers(1, 16), min_size=1, max_size=40), st.integers(0, 5))
def test_rows_hold_each_conversation_of_an_epoch_whole_and_once(
    lengths: list[int], seed: int
) -> None:
    conversations = made(*lengths)
    loader = ConversationLoader(conversations, seed=seed, epochs=2, rows=1, micro_batch_size=1)
    batches = [loader.batch(step, 0, 0, 1) for step in range(loader.total_rows)]
    seen = []
    for batch in batches:
        assert batch.loss_mask_BT is not None
        for document in range(int(batch.documents_BT.max()) + 1):
            ids = batch.ids_BT[batch.documents_BT == document]
            assert len(set(ids.tolist())) == 1
            index = int(ids[0]) - 1
            assert len(ids) == lengths[index]
            learned = batch.loss_mask_BT[batch.documents_BT == document]
            assert learned.tolist() == conversations.kept[index].loss_mask_T.tolist()
            seen.append(index)
        padding = batch.documents_BT == -1
        assert not batch.loss_mask_BT[padding].any()
        # Padding stands at the end, so that no document is torn.
        assert torch.equal(padding, padding.cummax(dim=1).values)
    half = len(seen) // 2
    assert sorted(seen[:half]) == sorted(seen[half:]) == list(range(len(lengths)))


def test_epochs_differ_and_the_seed_decides() -> None:
    conversations = made(*range(3, 15))
    loader = ConversationLoader(conversations, seed=1, epochs=2, rows=2, micro_batch_size=2)
    again = ConversationLoader(conversations, seed=1, epochs=2, rows=2, micro_batch_size=2)
    other = ConversationLoader(conversations, seed=2, epochs=2, rows=2, micro_batch_size=2)
    assert torch.equal(loader.batch(1, 0, 0, 1).ids_BT, again.batch(1, 0, 0, 1).ids_BT)
    assert not torch.equal(loader.batch(0, 0, 0, 1).ids_BT, other.batch(0, 0, 0, 1).ids_BT)
    assert loader._packed(0) != loader._packed(1)


def test_any_split_of_a_step_is_the_same_rows() -> None:
    conversations = made(*range(3, 15))
    whole = ConversationLoader(conversations, seed=0, epochs=1, rows=4, micro_batch_size=4)
    parts = ConversationLoader(conversations, seed=0, epochs=1, rows=4, micro_batch_size=1)
    rows = [parts.batch(0, micro, rank, 2).ids_BT for micro in range(2) for rank in range(2)]
    assert torch.equal(torch.cat(rows), whole.batch(0, 0, 0, 1).ids_BT)
    assert parts.micros(0, 2) == 2
    assert whole.tokens_per_step(0) == 64
    with pytest.raises(ConfigError, match="which 3 ranks cannot share"):
        parts.micros(0, 3)
    with pytest.raises(IndexError):
        parts.batch(0, 2, 0, 2)


def test_the_last_step_is_filled_with_empty_rows() -> None:
    loader = ConversationLoader(made(16, 16, 16), seed=0, epochs=1, rows=2, micro_batch_size=2)
    assert loader.total_rows == 3
    last = loader.batch(1, 0, 0, 1)
    assert (last.documents_BT[1] == -1).all()
    assert last.bytes_count == 16
    assert loader.filled_share == 1.0


def test_packing_wastes_little() -> None:
    generator = np.random.default_rng(0)
    conversations = made(*generator.integers(3, 60, 2_000).tolist(), seq_len=128)
    loader = ConversationLoader(conversations, seed=0, epochs=1, rows=1, micro_batch_size=1)
    assert loader.filled_share > 0.97
    least = math.ceil(conversations.tokens / 128)
    assert least <= len(pack(conversations, range(2_000))) < 1.03 * least


def test_validation_sees_everything_once() -> None:
    batches = list(validation_batches(made(*range(3, 15)), batch_size=3))
    assert sum(batch.bytes_count for batch in batches) == sum(range(3, 15))
    assert [len(batch.ids_BT) for batch in batches[:-1]] == [3] * (len(batches) - 1)


def test_rows_are_filled_with_the_first_that_come() -> None:
    conversations = made(9, 9, 7, 16, 3)
    assert [len(e.ids_T) for e in fill_rows(conversations, 1).kept] == [9, 7]
    assert [len(e.ids_T) for e in fill_rows(conversations, 2).kept] == [9, 9, 7, 3]
    assert fill_rows(conversations, 99) == conversations


def test_nothing_left_to_learn_is_refused() -> None:
    conversations = encode(talk("a", "b" * 400))
    with pytest.raises(DataError, match=r"1 are longer than a row of 64 tokens \(the longest has"):
        ConversationLoader(conversations, seed=0, epochs=1, rows=1, micro_batch_size=1)


def test_the_fingerprint_knows_ids_and_what_is_learned() -> None:
    first, second = made(4, 5), made(4, 5)
    assert first.fingerprint == second.fingerprint
    entry = first.kept[0]
    changed = EncodedConversation(entry.ids_T, ~entry.loss_mask_T, entry.bytes_count)
    assert Conversations((changed, first.kept[1]), 16).fingerprint != first.fingerprint
    assert made(5, 4).fingerprint != first.fingerprint


def test_rows_without_end_are_those_of_ever_more_epochs() -> None:
    conversations = made(7, 9, 5, 12, 3)
    fixed, endless = (
        ConversationLoader(conversations, seed=3, epochs=epochs, rows=2, micro_batch_size=2)
        for epochs in (6, None)
    )
    assert endless.total_rows is None
    assert fixed.total_rows is not None
    for step in reversed(range(fixed.total_rows // 2)):
        ours, theirs = endless.batch(step, 0, 0, 1), fixed.batch(step, 0, 0, 1)
        assert torch.equal(ours.ids_BT, theirs.ids_BT)
    assert (endless.batch(10_000, 0, 0, 1).documents_BT >= 0).any()
    assert not (fixed.batch(10_000, 0, 0, 1).documents_BT >= 0).any()


def test_the_model_can_learn_to_open_its_own_think_block() -> None:
    messages = (Message("user", "2+2"), Message("assistant", "4", reasoning_content="2+2=4"))
    r1 = get_chat_format("deepseek-r1")
    learned = {}
    for thinking in (None, False):
        [entry] = encode_conversations(
            [Conversation("f, line 1", messages)], TOKENIZER, r1, Encoding(64, thinking=thinking)
        ).kept
        learned[thinking] = TOKENIZER.decode(entry.ids_T[entry.loss_mask_T].tolist())
    assert "<think>" not in learned[None]
    assert learned[False].startswith("<think>")
