"""Programs need what was agreed. A budget that moves for a reason: python -m tests.contracts.accept"""

import contextlib

import pytest

pytest.importorskip("libtpu")

from m1jax.plan import contracts
from tests.contracts import cases


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.CASES)
def test_programs_keep_their_contract(name):
    agreed = contracts.load(cases.path(name))
    now = cases.measure(name, agreed)
    moved = contracts.differences(agreed, now)
    assert not moved, f"{name} moved: {'; '.join(moved)}. If it should: python -m tests.contracts.accept {name}"

    run = cases.CASES[name].run()
    assert now.lowered.kernels["m1_attention_forward"] >= cases.attention_calls(run)
    assert now.lowered.kernels["m1_attention_backward"] >= 1
    if run.model.compute_dtype == "bfloat16":
        # Muon's Newton-Schulz steps multiply moments in float32: matrices of layers, none with the tokens of a batch.
        rows, muon = str(run.stages[0].global_batch), run.optimizer.name == "muon"
        shapes = {product: product.split(" by ") for product in now.lowered.float32_products}
        if run.objective == "policy":  # the critic is one vector: its numbers, and the gradients of it and of its input
            tokens = f"{run.stages[0].global_batch // run.train.accumulation}x{run.stages[0].row_length}"
            hidden = f"{run.model.hidden}xf32"
            for own in (
                [f"{tokens}x{hidden}", hidden],
                [f"{tokens}xf32", f"{tokens}x{hidden}"],
                [f"{tokens}xf32", hidden],
            ):
                assert shapes.pop(" by ".join(own)) == own
        assert not [p for p, both in shapes.items() if not muon or any(s.split("x")[0] == rows for s in both)]
    if now.hbm:
        # Every layer of every micro-batch runs our kernel forward, and once more where remat computes it again.
        again = 2 if run.train.remat in ("block", "offload") else 1
        assert now.kernels["m1_attention_forward"] >= again * run.model.num_layers * run.train.accumulation
        assert now.whole_gathers == ()


def test_only_what_moved_is_compiled_again(monkeypatch):
    """Of the programs that are not always compiled: as agreed none, and those whose lowering, chips or flags moved."""
    compiled = []

    def lowered(self):
        return None, None, None, None

    def facts(lowered, mark, *rest):
        compiled.append(mark)
        raise StopIteration

    monkeypatch.setattr(cases.Case, "lower", lowered)
    monkeypatch.setattr(cases, "shown", lambda *_: contracts.Lowered("now", {}, ()))
    monkeypatch.setattr(cases.compiling, "facts", facts)
    for kind, mark, expected in (
        ("moved", "now", 0), ("moved", "before", 1), ("always", "now", 1), ("always", "before", 1), ("", "before", 0)
    ):  # fmt: skip
        compiled.clear()
        monkeypatch.setitem(cases.CASES, "some", cases.Case("some", "some", compiled=kind))
        agreed = contracts.Contract(contracts.Lowered(mark, {}, ()), ())
        with contextlib.suppress(StopIteration):
            cases.measure("some", agreed)
        assert len(compiled) == expected, (kind, mark)
