"""A run on pairs of answers as a picture: the accuracy on held-out pairs, and what else tells how far to trust it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m1jax.config import RunConfig
from m1jax.errors import UserError

Line = dict[str, Any]


def plot(config: RunConfig, path: Path) -> str:
    """Draws the run's metrics; of a reward model its calibration too. Returns a sentence of the last measurement.

    Raises UserError where the run has measured no held-out pairs, and where matplotlib is not installed.
    """
    from m1jax.train.hooks.journal import read_journal

    lines = read_journal(config.journal / "metrics.jsonl")
    held = [line for line in lines if "heldout_accuracy" in line]
    if not held:
        raise UserError(
            f"{config.journal} holds no measurement of held-out pairs: run `m1 prefer` first, with "
            f"train.validate_every above 0."
        )
    try:
        import matplotlib
    except ImportError as missing:
        raise UserError("--plot needs matplotlib: pip install 'm1jax[quickstart]'.") from missing
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.2), layout="constrained")
    left.plot(*_curve(lines, "accuracy"), color="0.75", label="pairs of the step")
    left.plot(*_curve(held, "heldout_accuracy"), "o-", color="tab:red", label="held-out pairs")
    left.axhline(0.5, color="0.5", linewidth=0.8, linestyle="--")
    left.set(xlabel="step", ylabel="chosen above rejected", title="accuracy", ylim=(0, 1.02))
    left.legend(fontsize=8)
    said = f"after step {held[-1]['step']}: accuracy {held[-1]['heldout_accuracy']:.3f} on held-out pairs"
    if config.objective == "reward":
        found = bins(held[-1])
        _calibration(right, found)
        said += f", calibration error {error(found):.3f}"
    else:
        for name in ("chosen", "rejected"):
            right.plot(*_curve(held, f"heldout_reward_{name}"), "o-", label=f"reward of {name}, held out")
        right.set(xlabel="step", ylabel="β Σ log π / π_ref", title="rewards")
        right.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return f"{said}."


def bins(line: Line) -> list[tuple[float, float, float]]:
    """(share, confidence, correct) of every bin of held-out pairs that has one (m1jax.objectives.reward)."""
    from m1jax.objectives.reward import BINS, bin_name

    names = [f"heldout_{bin_name(number)}" for number in range(len(BINS))]
    each = [(line[f"{name}/share"], line[f"{name}/confidence"], line[f"{name}/correct"]) for name in names]
    return [found for found in each if found[0] > 0]


def error(found: Sequence[tuple[float, float, float]]) -> float:
    """The expected calibration error: Σ share |correct − confidence| (Guo et al., arXiv 1706.04599, equation 3)."""
    return sum(share * abs(correct - confidence) for share, confidence, correct in found)


def _curve(lines: Sequence[Line], name: str) -> tuple[list[int], list[float]]:
    own = [line for line in lines if name in line]
    return [line["step"] for line in own], [line[name] for line in own]


def _calibration(axes: Any, found: Sequence[tuple[float, float, float]]) -> None:
    axes.plot([0.5, 1], [0.5, 1], color="0.5", linewidth=0.8, linestyle="--", label="calibrated")
    axes.plot([c for _, c, _ in found], [a for _, _, a in found], color="tab:red", linewidth=0.8)
    sizes = [20 + 400 * share for share, _, _ in found]
    axes.scatter([c for _, c, _ in found], [a for _, _, a in found], sizes, color="tab:red", alpha=0.6)
    for share, confidence, correct in found:
        axes.annotate(f"{share:.0%}", (confidence, correct), (6, -12), textcoords="offset points", fontsize=8)
    axes.set(xlabel="σ(|difference of the two numbers|)", ylabel="chosen above rejected", ylim=(0, 1.02))
    axes.set_title(f"calibration, held-out pairs (error {error(found):.3f})")
    axes.legend(fontsize=8, loc="lower right")
