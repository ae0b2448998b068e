import pytest

from ziphius.core.closing import Closing


class Door(Closing):
    is_open = True

    def close(self) -> None:
        self.is_open = False


def test_a_block_ends_with_close_and_hides_no_error() -> None:
    with Door() as door:
        assert door.is_open
    assert not door.is_open
    broken = Door()
    with pytest.raises(ZeroDivisionError), broken:
        1 / 0  # noqa: B018
    assert not broken.is_open
