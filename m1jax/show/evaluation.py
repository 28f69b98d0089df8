"""Tables for people (rich) and the same numbers for machines (JSON-able), side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
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


def _number(value: float) -> float | None:
    """Without a byte or a target there is no number: null, as JSON has no NaN."""
    return None if math.isnan(value) else value


def bits(found: Mapping[str, Mapping[str, Bits]], domains: Mapping[str, str], order: Sequence[str]) -> Report:
    """Bits per byte, a column for each model, a row for each source and under them one for its domain's total.

    `found` maps a model's name to its bits by source (the same sources for all), `domains` a source to its domain;
    `order` lists domains as they come in the table.
    """

    def entry(bits: Bits) -> dict[str, float | None]:
        counts = {"bits": bits.bits, "bytes": bits.bytes, "targets": bits.targets}
        return {"bits_per_byte": _number(bits.per_byte), **counts}

    columns = "bytes", lambda bits: bits.bytes, lambda bits: bits.per_byte
    return _measured("Bits per byte on held-out text", columns, entry, found, domains, order)


def losses(
    found: Mapping[str, Mapping[str, Bits]], domains: Mapping[str, str], order: Sequence[str], mean: str
) -> Report:
    """As `bits`, the loss of held-out conversations as training has it; `mean` is `train.loss_mean`."""

    def entry(bits: Bits) -> dict[str, float | None]:
        return {"loss": _number(bits.loss(mean)), "targets": bits.targets, "conversations": bits.documents}

    columns = "conversations", lambda bits: bits.documents, lambda bits: bits.loss(mean)
    title = f"Loss of held-out conversations (nats a target, mean over {mean})"
    return _measured(title, columns, entry, found, domains, order)


def pairs(found: Mapping[str, float], objective: str) -> Report:
    """What an objective reports of held-out pairs."""
    table = Table("quantity", "value", title=f"Held-out pairs (objective {objective})")
    for name, value in found.items():
        table.add_row(name.removeprefix("heldout_"), f"{value:.4f}")
    return Report(table, dict(found))


Columns = tuple[str, Callable[[Bits], float], Callable[[Bits], float]]
"""The name of the column that counts what was measured, its value, and the value of a model's column."""


def _measured(
    title: str,
    columns: Columns,
    entry: Callable[[Bits], dict[str, float | None]],
    found: Mapping[str, Mapping[str, Bits]],
    domains: Mapping[str, str],
    order: Sequence[str],
) -> Report:
    """A table with a column for each model, and the entries of sources and domains by model."""
    models = list(found)
    sources = list(next(iter(found.values())))
    totals = {model: by_domain(found[model], domains, order) for model in models}
    table = Table(title=title)
    table.add_column("domain")
    table.add_column("source")
    for heading in (columns[0], *models):
        table.add_column(heading, justify="right")
    for domain in totals[models[0]]:
        for source in (name for name in sources if domains[name] == domain):
            _row(table, columns, domain, source, [found[model][source] for model in models])
        total = [totals[model][domain] for model in models]
        _row(table, columns, domain, "total", total, style="bold", end_section=True)
    data = {
        model: {
            "sources": {source: entry(found[model][source]) for source in sources},
            "domains": {domain: entry(total) for domain, total in totals[model].items()},
        }
        for model in models
    }
    return Report(table, data)


def _row(table: Table, columns: Columns, domain: str, source: str, row: Sequence[Bits], **style: Any) -> None:
    """Adds a row; the least number is underlined."""
    _, count, value = columns
    values = [value(bits) for bits in row]
    least = min((number for number in values if not math.isnan(number)), default=math.nan)
    cells = ["–" if math.isnan(number) else f"{number:.3f}" for number in values]
    cells = [f"[u]{cell}[/u]" if number == least else cell for cell, number in zip(cells, values, strict=True)]
    table.add_row(escape(domain), escape(source), f"{count(row[0]):,.0f}", *cells, **style)
