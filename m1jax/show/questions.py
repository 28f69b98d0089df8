"""The table of answers to questions, and real answers beside the right ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from m1jax.evaluate.answers import ALL, Line, Share
from m1jax.evaluate.asking import Spoken
from m1jax.show.answers import shown
from m1jax.show.evaluation import Report

_AS = {"base": "text", "chat": "chat", "chat-cloze": "chat without the choices"}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _share(share: Share | None) -> str:
    if share is None:
        return "–"
    low, high = share.interval
    return f"{_percent(share.accuracy)} ({_percent(low)}, {_percent(high)})"


def _difference(line: Line) -> str:
    if line.difference is None:
        return "–"
    low, high = line.difference.interval
    return f"{100 * line.difference.difference:+.1f} ({100 * low:+.1f}, {100 * high:+.1f})"


def lines(found: Sequence[Line], about: Mapping[str, Any], against: Mapping[str, Any] | None) -> Report:
    """Accuracy by kind with its interval beside what blind answers reach, and beside another model's.

    `about` are those of both results (`m1jax.evaluate.answers.Answers`).
    """
    how = (
        f"asked as a {_AS[about['form']]} ({about['chat']})"
        if about["form"] != "base"
        else "asked as a text that goes on"
    )
    table = Table(
        title=escape(f"{_name(about)}: {about['set']}, {how}"),
        caption="Percent, with 95% intervals.",
        caption_justify="left",
    )
    table.add_column("kind", overflow="fold")
    constant = any(line.constant is not None for line in found)
    for heading in ["n", "chance", "longest", *(["one answer"] if constant else [])]:
        table.add_column(heading, justify="right")
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("other", justify="right")
    if against:
        other = "" if against["form"] == about["form"] else f", as {_AS[against['form']]}"
        for heading in (escape(_name(against) + other), "difference"):
            table.add_column(heading, justify="right", no_wrap=True)
    for line in found:
        cells = [f"{line.own.total:,}", _percent(line.chance), _percent(line.longest)]
        cells += [_percent(line.constant)] if constant else []
        cells += [_share(line.own), _percent(line.own.other)]
        cells += [_share(line.against), _difference(line)] if against else []
        table.add_row(escape(line.kind), *cells, style="bold" if line.kind == ALL else None)
    return Report(table, {line.kind: _data(line) for line in found})


def _name(about: Mapping[str, Any]) -> str:
    return Path(about["model"]).name


def spoken(answer: Spoken) -> Text:
    """A model's own answer beside the right one."""
    text = Text.assemble((f"{shown(answer.kind)}: ", "dim"), (shown(answer.question), "bold"))
    return text.append(f"\n  right: {shown(answer.right)}\n  said:  {shown(answer.said)}")


def _data(line: Line) -> dict[str, Any]:
    data = asdict(line)
    del data["kind"]
    return data
