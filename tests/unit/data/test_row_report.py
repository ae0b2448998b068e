import pytest

from ziphius.data.errors import DataError
from ziphius.data.row_report import SHOWN, RowReport


def test_the_first_bad_row_is_an_error_where_none_may_be_skipped() -> None:
    with pytest.raises(DataError, match="line 3: bad"):
        RowReport().refuse(DataError("line 3: bad"))


@pytest.mark.parametrize(("bad", "is_refused"), [(0, False), (10, False), (11, True), (100, True)])
def test_bad_rows_are_skipped_up_to_a_share(bad: int, is_refused: bool) -> None:
    said: list[str] = []
    report = RowReport(strict=False, max_bad_share=0.1, say=said.append)
    report.read = 100
    for line in range(bad):
        report.refuse(DataError(f"f, line {line}: bad."))
    assert said == [f"Skipped: f, line {line}: bad." for line in range(min(bad, SHOWN))]
    if is_refused:
        with pytest.raises(DataError, match=rf"f, line 0: bad\. {bad} of 100 rows cannot be used"):
            report.check()
    else:
        report.check()


def test_those_that_are_not_named_are_counted() -> None:
    said: list[str] = []
    report = RowReport(strict=False, max_bad_share=0.5, say=said.append)
    report.read = 100
    for line in range(SHOWN + 7):
        report.refuse(DataError(str(line)))
    report.check()
    assert said[SHOWN:] == ["Skipped: 7 more rows."]
