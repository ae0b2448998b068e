"""Tables for people: what a mix asks for, and what each domain really gave."""

from rich.table import Table

from ziphius.data.loader import MixLoader
from ziphius.data.packing import count_long


def mix_table(loader: MixLoader, rows: int) -> Table:
    """Show, after the first `rows` rows of a run, what each domain gave and what was left out."""
    table = Table(title=f"Text of {rows * loader.seq_len:,} tokens")
    table.add_column("domain")
    for column in ("asked", "tokens", "given", "epoch", "documents", "longer than a row"):
        table.add_column(column, justify="right")
    table.add_column("left out")
    given, epochs = loader.given(rows), loader.epochs(rows)
    for name, share in loader.data.shares.items():
        domain = loader.data.domains[name]
        left_out = ", ".join(f"{count:,} {why}" for why, count in domain.skipped.items())
        table.add_row(
            name,
            f"{100 * share:.1f} %",
            f"{given[name]:,}",
            f"{100 * given[name] / max(1, rows * loader.seq_len):.1f} %",
            f"{epochs[name]:.2f}",
            f"{domain.train.counts.documents:,}",
            f"{count_long(domain.train, loader.seq_len):,}",
            left_out or "-",
        )
    return table
