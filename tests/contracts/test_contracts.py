"""Programs need what was agreed. A budget that moves for a reason: python -m tests.contracts.accept"""

import pytest

pytest.importorskip("libtpu")

from m1jax.plan import compiling, contracts
from tests.contracts import cases

COMPILED = [name for name, case in cases.CASES.items() if case.compiled]
LOWERED = [name for name, case in cases.CASES.items() if not case.compiled]


def _hold(name, now):
    moved = contracts.differences(contracts.load(cases.path(name)), now)
    assert not moved, f"{name} moved: {'; '.join(moved)}. If it should: python -m tests.contracts.accept {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", LOWERED)
def test_lowered_programs_keep_their_contract(name):
    lowered, _, topology, _ = cases.CASES[name].lower()
    now = cases.shown(lowered, topology)
    _hold(name, contracts.Contract(now, compiling.compiler()))
    assert now.kernels["m1_attention_forward"] >= cases.attention_calls(cases.CASES[name].run())
    assert now.kernels["m1_attention_backward"] >= 1
    if cases.CASES[name].run().model.compute_dtype == "bfloat16":
        assert now.float32_products == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_programs_keep_their_contract(name):
    now = cases.measure(name)
    _hold(name, now)
    run = cases.CASES[name].run()
    assert now.lowered.float32_products == () and now.whole_gathers == ()
    # Every layer of every micro-batch runs our kernel forward, and once more where remat computes it again.
    again = 2 if run.train.remat in ("block", "offload") else 1
    assert now.kernels["m1_attention_forward"] >= again * run.model.num_layers * run.train.accumulation
