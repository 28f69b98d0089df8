"""A figure of matplotlib that needs no display."""

from pathlib import Path
from typing import Any

from m1jax.errors import UserError


def make(width: float, height: float) -> Any:
    """An empty figure of that size, inches; raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "matplotlib is missing: install m1jax with its extra, `pip install m1jax[quickstart]`."
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Writes the figure as a picture, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
