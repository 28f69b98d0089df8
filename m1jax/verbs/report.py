"""`m1 report`: the results of a run, in tables and one picture."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from m1jax.config import RunConfig
from m1jax.config.folders import RESULTS
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.show import figures
from m1jax.verbs.arguments import CONFIG, Parser, add_config, add_json, config_of, example

Line = dict[str, Any]


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 report {CONFIG}")
    add_config(parser)
    add_json(parser, "a table")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    report(config_of(args), args.json)


def report(config: RunConfig, as_json: bool) -> None:
    """Prints the summary of a run's folder and writes its loss.png and summary.json.

    Raises UserError if nothing has been trained, or matplotlib is not installed.
    """
    # They load JAX, which takes seconds.
    from m1jax.convert.agreement import VERIFICATION
    from m1jax.train.hooks.journal import read_journal

    console = consoles.make(as_json)
    folder = Path(config.folder)
    lines = read_journal(config.journal / "metrics.jsonl")
    if not lines:
        raise UserError(f"{config.journal} holds no metrics: run `m1 train` first, or give the right config.")
    stages = [_stage(name, [line for line in lines if line["stage"] == name]) for name in _names(lines)]
    summary: Line = {
        "parameters": config.model.num_parameters,
        "stages": stages,
        "before": _results(config.evaluation(0)),
        "after": _results(config.evaluation(int(lines[-1]["step"]))),
        "export": _results(config.export, VERIFICATION),
    }
    plot(lines, folder / "loss.png", f"{config.name}: {config.model.num_parameters / 1e6:.1f}M parameters")
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
        return
    console.print(_stage_table(stages))
    if summary["after"]:
        console.print(_bits_table(summary["before"], summary["after"]))
        if "accuracy" in summary["after"]:
            console.print(_accuracy_table(summary["after"]["accuracy"]))
    if summary["export"]:
        console.print(f"Export: {summary['export']['sentence']}")
    for what, path in _paths(config, folder):
        if path.exists():
            console.print(f"  {what:<12} {path}", highlight=False, soft_wrap=True)


def _names(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["stage"] for line in lines))


def _stage(name: str, lines: Sequence[Line]) -> Line:
    """A stage's numbers; the loss at its ends is the mean over a fifth of its steps."""
    # A step whose loss is not finite was skipped: the mean leaves it out.
    losses = np.array([line["loss"] for line in lines if np.isfinite(line["loss"])] or [np.nan])
    mfu = [line["mfu"] for line in lines if "mfu" in line]  # absent where the chip's peak is not known
    fifth = max(1, len(losses) // 5)
    return {
        "stage": name,
        "steps": len(lines),
        "first_loss": float(losses[:fifth].mean()),
        "last_loss": float(losses[-fifth:].mean()),
        "skipped": sum(line["skipped"] for line in lines),
        "tokens_per_second": float(np.median([line["tokens_per_second"] for line in lines])),
        "mfu": float(np.median(mfu)) if mfu else None,
    }


def _results(folder: Path, name: str = RESULTS) -> Line | None:
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _stage_table(stages: Sequence[Line]) -> Table:
    table = Table(title="Training (loss in nats a token, mean of the first and last fifth of a stage)")
    table.add_column("stage")
    for column in ("steps", "first loss", "last loss", "skipped", "tokens/s (median)", "MFU (median)"):
        table.add_column(column, justify="right")
    for stage in stages:
        losses = [f"{stage['first_loss']:.3f}", f"{stage['last_loss']:.3f}", str(stage["skipped"])]
        mfu = "n/a" if stage["mfu"] is None else f"{stage['mfu']:.0%}"
        speed = [f"{stage['tokens_per_second']:,.0f}", mfu]
        table.add_row(stage["stage"], str(stage["steps"]), *losses, *speed)
    return table


def _bits_table(before: Line | None, after: Line) -> Table:
    """Bits per byte by source and domain: before, after, and of the other models."""
    columns = {"before": before["bits_per_byte"]["model"]} if before else {}
    columns |= {("after" if name == "model" else name): found for name, found in after["bits_per_byte"].items()}
    table = Table(title="Bits per byte on held-out text (less is better)")
    table.add_column("held-out text")
    for name in columns:
        table.add_column(name, justify="right")
    for part in ("sources", "domains"):
        for key in columns["after"][part]:
            values = [found[part].get(key, {}).get("bits_per_byte") for found in columns.values()]
            name = f"all {key}" if part == "domains" else key
            table.add_row(
                name, *("–" if v is None else f"{v:.3f}" for v in values), style="bold" if part == "domains" else ""
            )
        table.add_section()
    return table


def _accuracy_table(accuracy: Line) -> Table:
    table = Table(title="Accuracy on questions, by answer likelihood")
    table.add_column("questions")
    for column in ("asked", "accuracy", "95% interval", "chance"):
        table.add_column(column, justify="right")
    for name, result in accuracy.items():
        low, high = result["interval"]
        row = [f"{result['accuracy']:.1%}", f"{low:.1%} – {high:.1%}", f"{result['chance']:.1%}"]
        table.add_row(name, str(result["total"]), *row)
    return table


def _paths(config: RunConfig, folder: Path) -> list[tuple[str, Path]]:
    return [
        ("corpus", config.corpus),
        ("tokenizer", config.tokenizer / "tokenizer.json"),
        ("rows", Path(config.rows_address)),
        ("checkpoints", config.checkpoints),
        ("metrics", config.journal / "metrics.jsonl"),
        ("TensorBoard", config.journal / "tensorboard"),
        ("evaluation", folder / "eval"),
        ("export", config.export),
        ("loss plot", folder / "loss.png"),
        ("summary", folder / "summary.json"),
    ]


def plot(lines: Sequence[Line], path: Path, title: str) -> None:
    """Draws loss over tokens, with stages and validation marked; raises UserError where matplotlib is not installed."""
    from m1jax.train.hooks.validation import LOSS  # loads JAX

    tokens = np.array([line["tokens"] for line in lines]) / 1e6
    losses = np.array([line["loss"] for line in lines])
    figure = figures.make(9, 4.5)
    axes = figure.add_subplot()
    axes.plot(tokens, losses, color="0.75", linewidth=0.8, label="each step")
    axes.plot(tokens, _smoothed(losses), color="tab:blue", linewidth=1.8, label="mean of 15 steps")
    heldout = [(line["tokens"] / 1e6, line[LOSS]) for line in lines if LOSS in line]
    if heldout:
        axes.plot(*zip(*heldout, strict=True), "o", color="tab:red", markersize=4, label="held-out text")
    start = 0.0
    for shade, name in enumerate(_names(lines)):
        end = max(line["tokens"] for line in lines if line["stage"] == name) / 1e6
        axes.axvspan(start, end, color="tab:orange", alpha=0.04 + 0.05 * (shade % 2), linewidth=0)
        axes.text((start + end) / 2, 0.97, name, transform=axes.get_xaxis_transform(), ha="center", va="top")
        start = end
    axes.set(xlabel="million tokens", ylabel="loss, nats a token", title=title)
    axes.set_xlim(0, start)
    axes.legend(loc="lower left", frameon=False)
    axes.grid(alpha=0.3)
    figures.save(figure, path)


def _smoothed(values: np.ndarray, width: int = 15) -> np.ndarray:
    """Centred running mean, over fewer values at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - width // 2, 0), np.minimum(index + width // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)
