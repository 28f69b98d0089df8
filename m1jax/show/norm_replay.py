"""`m1 train --replay-norms`: the steps that each clip policy would skip or scale, from recorded gradient norms."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from m1jax.config import CLIP_POLICIES, ClipConfig, RunConfig
from m1jax.errors import UserError
from m1jax.optim.clipping import decide, no_history, threshold
from m1jax.show import console as consoles
from m1jax.show import figures
from m1jax.train.hooks.journal import read_journal

REPLAYED = tuple(policy for policy in CLIP_POLICIES if policy != "adaptive")
"""`adaptive` works on the norms of units, which no trace of global norms holds."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """A policy's decisions over a trace, one value a step."""

    policy: str
    skipped: np.ndarray
    """bool."""
    threshold: np.ndarray
    """Norms above it are to be skipped; infinite where the policy skips none (yet)."""
    scale: np.ndarray
    """Factor of the gradients of a step that is taken."""
    forced: np.ndarray
    """Steps above the threshold that were taken anyway, after `max_skips` skipped ones; bool."""


def replay(config: ClipConfig, norms: np.ndarray, active: np.ndarray) -> Replay:
    """Runs a policy over global gradient norms (float32), judging where `active`: the code that a step runs."""

    def one(history: Any, step: Any) -> tuple[Any, Any]:
        norm, active = step
        full = (history.accepted >= config.history) & active
        limit = jnp.where(full, threshold(config, history.norms), jnp.inf)
        history = decide(config, history, norm, active)
        return history, (history.last_skipped, limit)

    norms = norms.astype(np.float32)
    _, (skipped, limit) = jax.jit(lambda: jax.lax.scan(one, no_history(config), (norms, active)))()
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.minimum(1.0, config.max_norm / norms) if config.max_norm else np.ones_like(norms)
    skipped, limit = np.asarray(skipped), np.asarray(limit)
    return Replay(config.policy, skipped, limit, scale, ~skipped & (norms > limit))


def run(config: RunConfig, trace: Path) -> Path:
    """Prints and draws every replayable policy over the norms of a metrics.jsonl; returns the picture's path.

    Raises UserError where the file holds no norms.
    """
    lines = [line for line in read_journal(trace) if "grad_norm" in line]
    if not lines:
        raise UserError(f"{trace} holds no gradient norms: give the metrics.jsonl of a run (in its train folder).")
    clip = config.optimizer.clip
    skipping = {stage.name: stage.skip_steps for stage in config.stages}
    steps, norms = (np.array([line[key] for line in lines]) for key in ("step", "grad_norm"))
    active = np.array([skipping.get(str(line.get("stage")), True) for line in lines])
    replays = [replay(dataclasses.replace(clip, policy=policy), norms, active) for policy in REPLAYED]
    console = consoles.make()
    console.print(_table(replays, steps, clip))
    console.print(
        "The norms are those of the run as it was: after a step that it took and a policy skips, others would have "
        "followed. `adaptive` needs the norms of units, which a trace does not hold.",
        soft_wrap=True,
    )
    path = config.journal / "clipping.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    _plot(replays, steps, norms, path, clip)
    console.print(f"Drawn in {path}", highlight=False, soft_wrap=True)
    return path


def _table(replays: list[Replay], steps: np.ndarray, clip: ClipConfig) -> Table:
    table = Table(title=f"Clip policies over {len(steps):,} recorded gradient norms")
    table.add_column("policy")
    for column in ("skipped", "forced", "scaled down", "median scale of these"):
        table.add_column(column, justify="right")
    table.add_column("skipped steps")
    for found in replays:
        scaled = ~found.skipped & (found.scale < 1)
        median = f"{np.median(found.scale[scaled]):.2f}" if scaled.any() else "–"
        named = [f"{step:,}" for step in steps[found.skipped][:8]]
        more = int(found.skipped.sum()) - len(named)
        words = ", ".join([*named, *([f"and {more:,} more"] if more > 0 else [])])
        name = f"{found.policy} (configured)" if found.policy == clip.policy else found.policy
        counts = (found.skipped.sum(), found.forced.sum(), scaled.sum())
        table.add_row(name, *(f"{count:,}" for count in counts), median, words or "–")
    return table


def _plot(replays: list[Replay], steps: np.ndarray, norms: np.ndarray, path: Path, clip: ClipConfig) -> None:
    figure = figures.make(9, 2.4 * len(replays))
    rows = figure.subplots(len(replays), 1, sharex=True, sharey=True)
    finite = np.isfinite(norms)
    for axes, found in zip(rows, replays, strict=True):
        axes.plot(steps[finite], norms[finite], color="0.7", linewidth=0.8, label="gradient norm")
        limit = np.where(found.threshold < np.inf, found.threshold, np.nan)
        if np.isfinite(limit).any():
            axes.plot(steps, limit, color="tab:orange", linewidth=1.2, label="threshold")
        if clip.max_norm:
            axes.axhline(clip.max_norm, color="tab:blue", linewidth=0.9, linestyle=":", label="scaled down above")
        for name, chosen, style in (("skipped", found.skipped, "rx"), ("forced", found.forced, "g^")):
            if (chosen & finite).any():
                axes.plot(steps[chosen & finite], norms[chosen & finite], style, markersize=5, label=name)
        for i, step in enumerate(steps[~finite]):
            axes.axvline(step, color="red", linewidth=0.8, alpha=0.5, label=None if i else "not finite: skipped")
        axes.set(yscale="log", ylabel="norm")
        axes.set_title(found.policy, loc="left", fontsize=10)
        axes.legend(loc="upper right", fontsize=7, frameon=False, ncols=6)
        axes.grid(alpha=0.3)
    rows[-1].set_xlabel("step")
    figures.save(figure, path)
