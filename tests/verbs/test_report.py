"""The picture of `m1 report`."""

from m1jax.show import figures
from m1jax.train.hooks.validation import LOSS
from m1jax.verbs import report


def test_losses_on_heldout_text_are_points_of_the_curve(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    lines = [{"tokens": 1e6 * n, "loss": 5.0 - n, "stage": "one"} for n in range(1, 4)]
    report.plot(lines, tmp_path / "loss.png", "no validation")
    report.plot([lines[0], {**lines[1], LOSS: 3.5}, {**lines[2], LOSS: 2.5}], tmp_path / "loss.png", "validation")
    without, with_points = ({line.get_label(): line for line in figure.axes[0].lines} for figure in drawn)
    assert "held-out text" not in without
    assert with_points["held-out text"].get_xydata().tolist() == [[2.0, 3.5], [3.0, 2.5]]
