"""m1jax against the PyTorch oracle: logits, loss and every parameter's gradient."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")

from m1jax import convert  # noqa: E402
from tests.model import small  # noqa: E402
from tests.oracle import cases, checkpoint  # noqa: E402

# The largest difference of a tensor over its largest absolute value; the oracle computes in float64.
FLOAT32 = 1e-4
# Root mean square errors beside those of the oracle computing in bfloat16 itself. Both round the same values to eight
# bits, in another order, so both lie equally far from the exact figures but for chance; a wrong precision shows as
# several times more.
BFLOAT16_OF_TORCH = 1.5
# Noise of the logits averages out over tokens: one rounding of a bfloat16 is the most that remains.
BFLOAT16_LOSS = 2**-8
ROWS = [[1] * 9 + [2] * 1 + [3] * 11, [0] * 2 + [1] * 14 + [0] * 5]
CHOSEN = [
    # Ten layers are scanned, and the window is longer than the row.
    {"num_layers": 10, "window": 50},
    {"hidden": 40, "num_heads": 10, "num_kv_heads": 1, "window_num_heads": 20, "window_num_kv_heads": 4, "window": 1},
    {"pattern": ("window", "window", "global"), "num_layers": 4, "tie_embeddings": True, "normalize_head": False},
]
# Each example compiles a program: a failing one is shown as it is, not made smaller. The same ones are drawn each time:
# a gradient of two numbers may nearly cancel by chance, and no program in float32 then has four digits of it.
quiet = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


def case(segments, base=1e5, seed=0, **changes):
    return cases.Case(small.config(**changes), base, seed, np.array(segments, np.int32))


def check(case):
    found = cases.differences(cases.ours(case), cases.theirs(case))
    worst = max(found, key=found.get)
    assert found[worst] < FLOAT32, f"{worst}: {found[worst]:.2e} of its largest value"


def check_bfloat16(case):
    exact = cases.theirs(case)
    found = cases.errors(cases.ours(case), exact)
    torchs = cases.errors(cases.theirs(case, torch.bfloat16), exact)
    assert found.logits < BFLOAT16_OF_TORCH * torchs.logits
    assert found.gradient < BFLOAT16_OF_TORCH * torchs.gradient
    assert found.loss < BFLOAT16_LOSS


def enough_numbers(case):
    """With fewer the ratio of two roundings is chance."""
    return (case.segments > 0).sum() >= 24 and case.config.hidden >= 16


@pytest.mark.parametrize("changes", CHOSEN)
def test_chosen_configurations(changes):
    check(case(ROWS, **changes))


@settings(quiet, max_examples=3)
@given(cases.cases())
def test_random_configurations(case):
    check(case)


@pytest.mark.slow
@settings(quiet, max_examples=40)
@given(cases.cases())
def test_many_random_configurations(case):
    check(case)


@pytest.mark.parametrize("window", [pytest.param(n, marks=[pytest.mark.slow] * (n != 100)) for n in (100, 128, 140)])
def test_rows_longer_than_a_block_of_queries(window):
    """Blocks hold 128 queries; windows below, at and above a block's length."""
    check(case([[1] * 130 + [2] * 127 + [0] * 4], window=window, num_layers=2))


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16_is_as_good_as_that_of_torch(param_dtype):
    # Heads enough for the convolutions to be judged too.
    shape = {"hidden": 24, "num_heads": 4, "num_kv_heads": 2, "window_num_heads": 12, "window_num_kv_heads": 4}
    check_bfloat16(case(ROWS, **shape, compute_dtype="bfloat16", param_dtype=param_dtype))


@pytest.mark.slow
@settings(quiet, max_examples=16)
@given(cases.cases(compute_dtype="bfloat16", param_dtype="bfloat16").filter(enough_numbers))
def test_bfloat16_is_as_good_in_many_configurations(case):
    check_bfloat16(case)


def test_the_exported_checkpoint_is_what_the_oracle_reads(tmp_path):
    here = case(ROWS, pattern=("global", "window", "window"), num_layers=5)
    convert.export(here.params, here.config, here.base, None, tmp_path)
    exported, wanted = load_file(tmp_path / "model.safetensors"), checkpoint.tensors(here.config, here.params)
    assert exported.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(exported[name], tensor, err_msg=name)
