"""`engine/cache_pool.py`: no block is lost, shared wrongly or found where it should not be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from ziphius.engine.cache_pool import CachePool, block_key, root_key


def keys_of(tokens: list[int], size: int = 4, salt: str = "", adapter: str = "") -> list[bytes]:
    keys, parent = [], root_key(salt, adapter)
    for start in range(0, len(tokens) - size + 1, size):
        parent = block_key(parent, tokens[start : start + size])
        keys.append(parent)
    return keys


def filled(pool: CachePool, tokens: list[int]) -> list[int]:
    """Let a sequence own the blocks of a text and publish the full ones."""
    blocks = pool.allocate(pool.blocks_for(len(tokens)))
    for block, key in zip(blocks, keys_of(tokens), strict=False):
        pool.publish(block, key)
    return blocks


def test_a_key_says_all_tokens_before_it_the_salt_and_the_adapter():
    tokens = list(range(8))
    assert keys_of(tokens)[0] == keys_of(tokens[:4])[0]
    others = [
        keys_of([9, *tokens[1:]]),
        keys_of(tokens, salt="a"),
        keys_of(tokens, adapter="a"),
        keys_of(tokens, salt="a", adapter="b"),
        keys_of(tokens, salt="ab"),
        keys_of([*tokens[:3], 2**40, *tokens[4:]]),
    ]
    found = [keys[1] for keys in [keys_of(tokens), *others]]
    assert len(set(found)) == len(found)


def test_released_blocks_are_found_again_until_they_are_needed():
    pool = CachePool(4, 4)
    tokens = list(range(10))
    blocks = filled(pool, tokens)
    pool.release(blocks)
    pool.check([])
    assert pool.num_free == 4
    assert pool.find(keys_of(tokens)) == blocks[:2]
    pool.share(blocks[:2])
    pool.check([blocks[:2]])
    assert pool.num_free == 2
    pool.release(blocks[:2])
    taken = pool.allocate(4)
    assert pool.find(keys_of(tokens)) == []
    assert pool.evictions == 2
    pool.check([taken])


def test_the_end_of_a_text_is_evicted_before_its_beginning_and_old_before_new():
    pool = CachePool(4, 4)
    old, new = [1] * 8, [2] * 8
    pool.release(filled(pool, old))
    pool.release(filled(pool, new))
    pool.allocate(1)
    assert len(pool.find(keys_of(old))) == 1
    assert len(pool.find(keys_of(new))) == 2
    pool.allocate(1)
    assert len(pool.find(keys_of(old))) == 0


def test_of_equal_blocks_the_first_is_found_and_the_second_is_freed():
    pool = CachePool(4, 4)
    first, second = filled(pool, [7] * 4), filled(pool, [7] * 4)
    assert pool.find(keys_of([7] * 4)) == first
    pool.release(second)
    pool.check([first])
    assert pool.find(keys_of([7] * 4)) == first


def test_a_fork_shares_full_blocks_and_copies_the_last():
    pool = CachePool(6, 4)
    blocks = filled(pool, list(range(10)))
    other, copies = pool.fork(blocks, 10)
    assert other[:2] == blocks[:2]
    assert copies == [(blocks[2], other[2])]
    assert other[2] not in blocks
    third, copies = pool.fork(blocks[:2], 8)
    assert (third, copies) == (blocks[:2], [])
    pool.check([blocks, other, third])
    pool.release(blocks)
    pool.check([other, third])


def test_truncating_gives_blocks_back_and_copies_what_others_read():
    pool = CachePool(8, 4)
    own = pool.allocate(4)
    assert pool.truncate(own, 5) == []
    assert len(own) == 2
    pool.check([own])
    shared = filled(pool, list(range(8)))
    before = list(shared)
    [copy] = pool.truncate(shared, 6)
    assert copy == (before[1], shared[1])
    assert pool.find(keys_of(list(range(8)))) == before
    assert pool.truncate(shared, 4) == []
    assert shared == before[:1]
    assert pool.truncate(shared, 0) == []
    pool.check([own, shared])
    one, _ = pool.fork(own[:1], 4)
    assert pool.truncate(one, 3) == [(own[0], one[0])]
    pool.check([own, shared, one])


def test_new_weights_forget_everything():
    pool = CachePool(4, 4)
    running, ended = filled(pool, [1] * 4), filled(pool, [2] * 4)
    pool.release(ended)
    pool.forget_all()
    assert pool.find(keys_of([1] * 4)) == pool.find(keys_of([2] * 4)) == []
    pool.check([running])
    pool.release(running)
    pool.check([])


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool, blocks: pool._references.__setitem__(blocks[0], 2),
        lambda pool, blocks: pool._empty.append(blocks[0]),
        lambda pool, blocks: pool._empty.pop(),
        lambda pool, blocks: pool._index.clear(),
        lambda pool, blocks: blocks.append(blocks[0]),
        lambda pool, blocks: blocks.pop(),
    ],
)
def test_check_sees_damage(damage):
    pool = CachePool(8, 4)
    blocks = filled(pool, list(range(10)))
    pool.check([blocks])
    damage(pool, blocks)
    with pytest.raises(AssertionError):
        pool.check([blocks])


def test_what_cannot_be_is_an_assertion():
    pool = CachePool(2, 4)
    blocks = pool.allocate(2)
    with pytest.raises(AssertionError, match="1 blocks asked of 0"):
        pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(blocks)


TEXTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)


@examples(100)
@given(st.lists(st.tuples(st.sampled_from("afrtx"), TEXTS, st.integers(0, 99)), max_size=40))
def test_any_order_of_calls_keeps_the_books_right(calls):
    """Against a model that keeps the text of every block."""
    pool, live, texts = CachePool(12, 2), [], {}
    for kind, tokens, number in calls:
        chosen = live[number % len(live)] if live else None
        if kind == "a":
            keys = keys_of(tokens, 2)
            found = pool.find(keys)
            for place, block in enumerate(found):
                assert texts[block] == tokens[: 2 * place + 2]
            needed = pool.blocks_for(len(tokens)) - len(found)
            if needed + pool.idle_among(found) <= pool.num_free:
                pool.share(found)
                blocks = [*found, *pool.allocate(needed)]
                for place in range(len(found), len(tokens) // 2):
                    texts[blocks[place]] = tokens[: 2 * place + 2]
                    pool.publish(blocks[place], keys[place])
                live.append((blocks, len(tokens)))
        elif chosen is None:
            continue
        elif kind == "r":
            live.remove(chosen)
            pool.release(chosen[0])
        elif kind == "f" and pool.num_free:
            blocks, copies = pool.fork(*chosen)
            live.append((blocks, chosen[1]))
            for source, target in copies:
                texts[target] = texts.get(source)
        elif kind == "t" and pool.num_free:
            live.remove(chosen)
            length = number % (chosen[1] + 1)
            pool.truncate(chosen[0], length)
            live.append((chosen[0], length))
        elif kind == "x":
            pool.forget_all()
        pool.check(blocks for blocks, _ in live)
