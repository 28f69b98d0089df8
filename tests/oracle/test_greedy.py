"""64 greedy tokens from the engine's cache equal those of programs that are not ours, far past the window."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from m1jax import convert  # noqa: E402
from m1jax.generate import LanguageModel  # noqa: E402
from tests.model import small  # noqa: E402
from tests.oracle import cases, checkpoint, torch_m1  # noqa: E402

COUNT = 64


def of_oracle(config, params, prompt):
    named = {name: torch.tensor(leaf) for name, leaf in checkpoint.tensors(config, params).items()}
    return torch_m1.greedy(checkpoint.settings(config, small.BASE), named, prompt, COUNT)


def of_mlx(folder, prompt):
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    steps = generate_step(mx.array(prompt), load_model(folder)[0], max_tokens=COUNT)
    return [int(token) for token, _ in steps]


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 40, "num_heads": 10, "num_kv_heads": 1, "window": 7},
        {"pattern": ("window", "window", "global"), "num_layers": 3, "normalize_head": False},
    ],
)
def test_greedy_tokens_equal_the_uncached_oracles(changes):
    config = small.config(**changes)
    params = cases.parameters(config, 1)
    prompt = np.asarray(small.tokens(0, 19)).tolist()
    got = LanguageModel(config, small.BASE, params).generate(prompt, max_new_tokens=COUNT)
    assert got == of_oracle(config, params, prompt)
    assert len(set(got)) > 8, "a row that repeats itself proves little"


def test_greedy_tokens_equal_mlx_lms(tmp_path):
    pytest.importorskip("mlx_lm")
    config = small.config(window=11)
    params = cases.parameters(config, 2)
    convert.export(params, config, small.BASE, None, tmp_path)
    prompt = np.asarray(small.tokens(1, 19)).tolist()
    got = LanguageModel(config, small.BASE, params).generate(prompt, max_new_tokens=COUNT)
    assert got == of_mlx(tmp_path, prompt) == of_oracle(config, params, prompt)
    assert len(set(got)) > 8
