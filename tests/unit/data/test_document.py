from ziphius.data.document import Document, fraction, is_held_out


def test_a_fraction_depends_on_every_name_and_on_nothing_else() -> None:
    assert fraction("a", 1) == fraction("a", 1)
    assert len({fraction("a", 1), fraction("a", 2), fraction("b", 1), fraction("a1")}) == 4


def test_fractions_are_spread_evenly() -> None:
    drawn = [fraction("x", number) for number in range(10_000)]
    assert 0.0 <= min(drawn) < max(drawn) < 1.0
    assert all(900 < sum(i <= 10 * f < i + 1 for f in drawn) < 1_100 for i in range(10))


def test_one_document_in_a_hundred_is_held_out() -> None:
    held_out = [n for n in range(20_000) if is_held_out(Document(f"file {n}", ""))]
    assert 150 < len(held_out) < 250


def test_a_document_may_say_itself_that_it_is_held_out() -> None:
    for number in range(300):
        assert is_held_out(Document(f"file {number}", "", held_out=True))
        assert not is_held_out(Document(f"file {number}", "", held_out=False))
