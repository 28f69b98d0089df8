"""The pictures that `m1 train` draws instead of training, and the numbers in them."""

import json

import numpy as np
import pytest

from m1jax.config import CLIP_POLICIES, ClipConfig
from m1jax.curriculum.curriculum import Curriculum
from m1jax.show import mixture_plot, norm_replay
from m1jax.verbs import main
from tests.optim import test_clipping
from tests.rows import toy_rows
from tests.verbs.conftest import TINY

PNG = b"\x89PNG"


def trace():
    rng = np.random.default_rng(0)
    norms = 1 + 0.05 * rng.normal(size=60)
    norms[[30, 31, 32, 50]] *= 5
    norms[40] = np.nan
    return norms


@pytest.mark.parametrize("policy", norm_replay.REPLAYED)
def test_a_replay_skips_what_a_run_would_have_skipped(policy):
    config = ClipConfig(policy=policy, history=10)
    found = norm_replay.replay(config, trace(), np.ones(60, bool))
    skipped, _, _ = test_clipping.run(trace().astype(np.float32), config)
    np.testing.assert_array_equal(found.skipped, skipped)
    assert found.skipped[40] and not found.forced[40]
    expected = [] if policy == "global_norm" else [31]
    assert list(np.flatnonzero(found.forced)) == expected
    # One forced 5 among ten norms lifts six standard deviations above the next 5, but not Algorithm 1's threshold.
    assert found.skipped.sum() == {"skip_spikes": 4, "skip_sigmas": 3, "global_norm": 1}[policy]


def test_where_a_stage_does_not_skip_nothing_finite_is_skipped():
    active = np.arange(60) >= 45
    found = norm_replay.replay(ClipConfig(history=10), trace(), active)
    assert list(np.flatnonzero(found.skipped)) == [40, 50]
    assert np.isinf(found.threshold[:45]).all() and np.isfinite(found.threshold[45:]).all()


def test_the_pictures(tmp_path, capsys):
    lines = [{"step": i + 1, "grad_norm": float(n), "stage": "general"} for i, n in enumerate(trace())]
    (tmp_path / "norms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = ["train", "--config", TINY, "--set", f"folder={tmp_path}/run"]
    assert main([*run, "--plot-schedule", "--replay-norms", str(tmp_path / "norms.jsonl")]) == 0
    said = capsys.readouterr().out
    for name in CLIP_POLICIES:
        assert name in said
    for name in ("schedule", "clipping"):
        assert (tmp_path / "run" / "train" / f"{name}.png").read_bytes().startswith(PNG)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert main([*run, "--replay-norms", str(tmp_path / "none.jsonl")]) == 2
    assert "holds no gradient norms" in capsys.readouterr().err


def test_a_mixture_is_drawn_in_the_order_of_the_configs_domains():
    domains = {"a": "atlas", "b": "reports", "c": "reports", "d": "elsewhere"}
    manifest = toy_rows.manifest({name: {8: [8]} for name in domains}, domains)
    stages = (
        toy_rows.stage("first", 8, 4, 2, {"a": 1, "b": 1, "c": 2}),
        toy_rows.stage("second", 8, 8, 3, {"a": 1, "d": 1}),
    )
    names, shares, tokens = mixture_plot.stacked(Curriculum(stages, manifest, 0), ("reports", "atlas"))
    assert names == ["c (reports)", "b (reports)", "a (atlas)", "d (elsewhere)"]
    np.testing.assert_array_equal(shares, [[0.5, 0], [0.25, 0], [0.25, 0.5], [0, 0.5]])
    np.testing.assert_array_equal(tokens, [8 * 4 * 2, 8 * 8 * 3])
