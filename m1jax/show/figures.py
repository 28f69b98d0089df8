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


def colours() -> Any:
    """Twenty distinct colours, an array (20, 4); call `make` first, which raises where matplotlib is missing."""
    from matplotlib import colormaps

    return colormaps["tab20"](range(20))


def save(figure: Any, path: Path) -> None:
    """Writes the figure as a picture; raises UserError where the path cannot be written or names no format."""
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written ({error}): give a path that ends in .png, .svg or .pdf.") from error
