"""mlx-lm, an independent program, loads what we export."""

import numpy as np
import pytest

from m1jax import convert, model
from m1jax.errors import UserError
from m1jax.generate import LanguageModel
from tests.model import small

mlx = pytest.importorskip("mlx_lm")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pattern": ("global", "window", "window"), "num_layers": 5},
        {"num_kv_heads": 2, "window_num_kv_heads": 1, "window": 40},
    ],
)
def test_mlx_computes_the_same_logits_past_the_window(changes, tmp_path):
    config = small.config(**changes)
    _, params = model.create(config, 0)
    convert.export(params, config, 1e5, None, tmp_path)
    ours = LanguageModel(config, 1e5, params)
    prompts = [np.asarray(small.tokens(i, n)).tolist() for i, n in enumerate((33, 1, 12))]
    agreement = convert.verify_with_mlx(tmp_path, prompts, ours)
    assert agreement.tokens == 46 and agreement.longest == 33
    assert agreement.relative_difference < 1e-5 and agreement.greedy_agreement == 1

    # The comparison is not blind: a model of another RoPE base, or of other weights, is told apart.
    assert convert.verify_with_mlx(tmp_path, prompts, LanguageModel(config, 1e3, params)).relative_difference > 1e-3
    other = LanguageModel(config, 1e5, model.create(config, 1)[1])
    assert convert.verify_with_mlx(tmp_path, prompts, other).greedy_agreement < 0.5


def test_bfloat16_agrees_within_its_rounding(tmp_path):
    config = small.config(init_std=0.1, param_dtype="bfloat16", compute_dtype="bfloat16")
    _, params = model.create(config, 0)
    convert.export(params, config, 1e5, None, tmp_path)
    prompt = np.asarray(small.tokens(0, 33)).tolist()
    agreement = convert.verify_with_mlx(tmp_path, [prompt], LanguageModel(config, 1e5, params))
    # Eight-bit mantissas through four layers: 2 to 3 % of the largest logit.
    assert agreement.relative_difference < 0.05


def test_a_machine_without_mlx_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlx_lm.utils", None)
    with pytest.raises(UserError, match=r"m1jax\[quickstart\]"):
        convert.verify_with_mlx(tmp_path, [[1]], lambda tokens: tokens)
