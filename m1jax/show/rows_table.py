"""The table of packed rows that `m1 pack` prints."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from m1jax.rows.manifest import Manifest, SourceRows


def table(manifest: Manifest) -> Table:
    """A row for each source, and for all: documents, tokens, and the rows of every length.

    Where only some tokens are targets, a column says which share: of all that could be, which are those but the first
    of each document.
    """
    every = list(manifest.sources.values())
    partial = any(source.trained_tokens < source.tokens - source.documents for source in every)
    shown = Table(title="Packed rows (cut: documents in several pieces)", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("source", "domain"):
        shown.add_column(column)
    for column in ("documents", "M tokens", *(["targets"] if partial else []), "B/token", "packing\nwindows"):
        shown.add_column(column, justify="right")
    for length in manifest.row_lengths:
        for column in (f"of {length:,}", "fill", "cut"):
            shown.add_column(column, justify="right", no_wrap=True)
    for name, source in manifest.sources.items():
        row = [name, source.domain, f"{source.documents:,}", f"{source.tokens / 1e6:,.2f}"]
        row += [_share([source])] if partial else []
        row += [f"{source.utf8_bytes / source.tokens:.2f}", str(source.packing_windows)]
        for length in manifest.row_lengths:
            file = source.files[length]
            row += [f"{file.rows:,}", f"{file.fill:.2%}", f"{file.cut / source.documents:.1%}"]
        shown.add_row(*row)
    shown.add_section()
    documents, tokens = (sum(getattr(source, name) for source in every) for name in ("documents", "tokens"))
    windows = sum(source.packing_windows for source in every)
    total = ["all", "", f"{documents:,}", f"{tokens / 1e6:,.2f}"]
    total += [*([_share(every)] if partial else []), "", str(windows)]
    for length in manifest.row_lengths:
        files = [source.files[length] for source in every]
        rows = sum(file.rows for file in files)
        filled = sum(file.fill * file.rows for file in files) / rows
        total += [f"{rows:,}", f"{filled:.2%}", f"{sum(file.cut for file in files) / documents:.1%}"]
    shown.add_row(*total)
    return shown


def _share(sources: Sequence[SourceRows]) -> str:
    """Tokens that are targets with a weight above 0, of those that could be."""
    possible = sum(source.tokens - source.documents for source in sources)
    return f"{sum(source.trained_tokens for source in sources) / possible:.1%}"
