"""`m1 train --plot-schedule`: the learning rate of a run before it runs."""

from pathlib import Path

import numpy as np

from m1jax.config import RunConfig
from m1jax.optim.schedules import learning_rate
from m1jax.show import console as consoles
from m1jax.show import figures

_POINTS = 4000


def plot(config: RunConfig) -> Path:
    """Draws the learning rate over the global step, stage by stage, into schedule.png of the run's train folder."""
    starts = np.array(config.timeline.first_steps)
    # The first and last step of every stage are always drawn.
    steps = np.unique([*np.linspace(0, config.total_steps - 1, _POINTS).astype(int), *starts[:-1], *(starts[1:] - 1)])
    rates = np.asarray(learning_rate(config)(steps))
    figure = figures.make(9, 4)
    axes = figure.add_subplot()
    axes.plot(steps, rates, color="tab:blue", linewidth=1.8)
    for i, stage in enumerate(config.stages):
        axes.axvspan(starts[i], starts[i + 1], color="tab:orange", alpha=0.04 + 0.05 * (i % 2), linewidth=0)
        words = f"{stage.name}\n{stage.steps:,} steps of\n{stage.global_batch:,} x {stage.row_length:,}"
        middle = (starts[i] + starts[i + 1]) / 2
        place = axes.get_xaxis_transform()
        axes.text(middle, 1.08, words, ha="center", va="bottom", fontsize=7, transform=place)
    axes.set(xlabel="step", ylabel="learning rate", xlim=(0, config.total_steps), ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.grid(alpha=0.3)
    path = config.journal / "schedule.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)
    consoles.make().print(f"Learning rate of {config.total_steps:,} steps: {path}", highlight=False, soft_wrap=True)
    return path
