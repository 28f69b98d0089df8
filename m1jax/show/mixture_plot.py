"""The picture of a curriculum: each source's share of the tokens, stage after stage."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m1jax.config.domains import ordered
from m1jax.curriculum.curriculum import Curriculum
from m1jax.show import figures

_UNITS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand"))
_NAMED = 14
"""Sources that have a colour and a name of their own; the smallest others are drawn as one."""


def plot(curriculum: Curriculum, domains: Sequence[str], path: Path, title: str) -> None:
    """Draws the mixture over tokens as stacked areas, from the first of `domains` upwards.

    Raises UserError where matplotlib is missing or refuses.
    """
    names, shares, tokens = stacked(curriculum, domains)
    unit, word = next(((size, word) for size, word in _UNITS if tokens.sum() >= size), (1.0, ""))
    edges = np.concatenate([[0.0], np.cumsum(tokens)]) / unit
    figure = figures.make(10, 4.8)
    axes = figure.add_subplot()
    # Each stage is a step of constant shares: its values at both of its edges.
    places = np.repeat(edges, 2)[1:-1]
    areas = axes.stackplot(
        places, np.repeat(shares, 2, axis=1) * 100, labels=names, colors=figures.colours(), linewidth=0
    )
    for i, stage in enumerate(curriculum.stages):
        if i:
            axes.axvline(edges[i], color="white", linewidth=1.5)
        if tokens[i] / tokens.sum() > 0.03:
            middle = (edges[i] + edges[i + 1]) / 2
            axes.text(middle, 101.5, f"{stage.name}\n{stage.row_length:,} a row", ha="center", va="bottom", fontsize=8)
    axes.set(xlabel=f"{word} tokens".strip(), ylabel="share of tokens, %", xlim=(0, edges[-1]), ylim=(0, 100))
    axes.set_title(title, pad=34)
    handles = areas[::-1]
    axes.legend(handles, names[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    figures.save(figure, path)


def stacked(curriculum: Curriculum, domains: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, shares (name, stage) and tokens (stage,).

    Sources are in the order of `domains`, and those of one domain largest first.
    """
    uses = curriculum.table()
    stages = [stage.name for stage in curriculum.stages]
    timeline = curriculum.timeline
    tokens = np.diff([float(timeline.tokens_before(step)) for step in timeline.first_steps])
    sources = {use.source: use.domain for use in uses}
    table = {name: np.zeros(len(stages)) for name in sources}
    for use in uses:
        table[use.source][stages.index(use.stage)] = use.share
    by_size = sorted(sources, key=lambda name: -float(table[name] @ tokens))
    place = {domain: i for i, domain in enumerate(ordered(sources.values(), domains))}
    kept = sorted(by_size[:_NAMED], key=lambda name: (place[sources[name]], by_size.index(name)))
    rows = [table[name] for name in kept]
    names = [f"{name} ({sources[name]})" for name in kept]
    if others := by_size[_NAMED:]:
        rows.append(np.sum([table[name] for name in others], axis=0))
        names.append(f"{len(others)} others")
    return names, np.array(rows), tokens
