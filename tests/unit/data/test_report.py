import io
from pathlib import Path

from rich.console import Console

from tests.unit.data.made import make_data
from ziphius.data.loader import MixLoader
from ziphius.data.report import mix_table


def test_the_table_says_what_each_domain_gave(tmp_path: Path) -> None:
    data = make_data(
        tmp_path, {"general": [40] * 10, "code": [8] * 50}, {"general": 0.75, "code": 0.25}
    )
    data.domains["code"].skipped["duplicate"] = 3
    loader = MixLoader(data, seq_len=8, seed=0, rows=4, micro_batch_size=4)
    output = io.StringIO()
    Console(file=output, width=120).print(mix_table(loader, 100))
    lines = {line.split()[1]: line for line in output.getvalue().splitlines() if "%" in line}
    assert [*lines] == ["general", "code"]
    assert (lines["general"].count("75.0 %"), lines["code"].count("25.0 %")) == (2, 2)
    for shown in ("75.0 %", "600", "1.50", "10"):
        assert shown in lines["general"]
    for shown in ("25.0 %", "200", "0.50", "3 duplicate"):
        assert shown in lines["code"]


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    data = make_data(tmp_path, {"general": [40] * 10})
    loader = MixLoader(data, seq_len=8, seed=0, rows=4, micro_batch_size=4)
    assert mix_table(loader, 0).row_count == 1
