"""Tables for people (rich) and the same numbers for machines (JSON-able), side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from m1jax.evaluate.bits import Bits, by_domain
from m1jax.evaluate.choice import Result


@dataclass(frozen=True)
class Report:
    """One finding in two forms."""

    table: Table
    data: dict[str, Any]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def accuracy(results: Sequence[Result]) -> Report:
    """Accuracy by task with its 95% interval, the chance level, and what always giving one answer reaches."""
    table = Table(title="Accuracy by answer likelihood")
    table.add_column("task")
    for heading in ("items", "accuracy", "95% interval", "chance", "one answer always"):
        table.add_column(heading, justify="right")
    table.add_column("metric")
    table.add_column("by the other metric", justify="right")
    for result in results:
        others = [_share(value) for name, value in result.accuracies.items() if name != result.metric]
        low, high = result.interval
        table.add_row(
            result.task,
            f"{result.total:,}",
            _share(result.accuracy),
            f"{_share(low)} – {_share(high)}",
            _share(result.chance),
            _share(result.constant),
            result.metric,
            ", ".join(others),
        )
    return Report(table, {result.task: asdict(result) for result in results})


def _entry(bits: Bits) -> dict[str, float | int | None]:
    """Without a byte there is no number: null, as JSON has no NaN."""
    return {
        "bits_per_byte": bits.per_byte if bits.bytes else None,
        "bits": bits.bits,
        "bytes": bits.bytes,
        "targets": bits.targets,
    }


def bits(found: Mapping[str, Mapping[str, Bits]], domains: Mapping[str, str], order: Sequence[str]) -> Report:
    """Bits per byte, a column for each model, a row for each source and under them one for its domain's total.

    `found` maps a model's name to its bits by source (the same sources for all), `domains` a source to its domain;
    `order` lists domains as they come in the table.
    """
    models = list(found)
    sources = list(next(iter(found.values())))
    totals = {model: by_domain(found[model], domains, order) for model in models}
    table = Table(title="Bits per byte on held-out text")
    table.add_column("domain")
    table.add_column("source")
    table.add_column("bytes", justify="right")
    for model in models:
        table.add_column(model, justify="right")
    for domain in totals[models[0]]:
        for source in (name for name in sources if domains[name] == domain):
            _row(table, domain, source, [found[model][source] for model in models])
        _row(table, domain, "total", [totals[model][domain] for model in models], style="bold", end_section=True)
    data = {
        model: {
            "sources": {source: _entry(found[model][source]) for source in sources},
            "domains": {domain: _entry(total) for domain, total in totals[model].items()},
        }
        for model in models
    }
    return Report(table, data)


def _row(table: Table, domain: str, source: str, row: Sequence[Bits], **style: Any) -> None:
    """Adds a row; the least number of bits per byte is underlined."""
    least = min((entry.per_byte for entry in row if entry.bytes), default=math.nan)
    cells = ["–" if not entry.bytes else f"{entry.per_byte:.3f}" for entry in row]
    cells = [f"[u]{cell}[/u]" if entry.per_byte == least else cell for cell, entry in zip(cells, row, strict=True)]
    table.add_row(escape(domain), escape(source), f"{row[0].bytes:,}", *cells, **style)
