"""Norms by layer kind, and what a report says of a skipped step."""

import functools

import jax
import numpy as np

from m1jax import model
from m1jax.config import file as config_file
from m1jax.model.layout import layout
from m1jax.train import norms
from m1jax.train.hooks.progress import skip_sentence
from tests.train import test_loop
from tests.train.test_loop import TINY


def test_norms_of_kinds_make_up_the_whole():
    config = config_file.load(TINY)
    params = jax.tree.map(np.asarray, jax.jit(functools.partial(model.initialise, config.model, 0))())
    found = norms.by_kind("param_norm", params, layout(config.model).kind_of)
    assert set(found) == {f"param_norm/{kind}" for kind in ("embed", "head", "norm", "global", "window")}
    total = np.sqrt(sum(float(value) ** 2 for value in found.values()))
    np.testing.assert_allclose(total, np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(params))), rtol=1e-5)
    window = jax.tree.leaves(params["periods"]["1"])
    np.testing.assert_allclose(found["param_norm/window"], np.sqrt(sum((leaf**2).sum() for leaf in window)), rtol=1e-5)


def test_a_skip_says_norm_mean_step_and_rows(tmp_path):
    reports = []
    test_loop.run(test_loop.small_config(tmp_path, checkpoint_every=100), on_report=reports.append, spoil={6})
    (skipped,) = [report for report in reports if report.skipped]
    assert skip_sentence(skipped).startswith("step 7 skipped: gradient norm nan, mean of accepted norms ")
    assert skip_sentence(skipped).endswith("global rows 24 to 27")
    np.testing.assert_allclose(skipped.norm_mean, np.mean([report.grad_norm for report in reports[:6]]), rtol=1e-5)
    assert set(skipped.values) == {
        f"{what}_norm/{kind}" for what in ("grad", "update", "param") for kind in test_loop.Bigram().axes
    }
    assert skipped.values["update_norm/embed"] == 0
    assert reports[5].values["update_norm/embed"] > 0
    assert reports[0].rows == (0, 3) and reports[-1].rows == (48, 49)
