import dataclasses
import json

import pytest

from m1jax.plan import contracts
from m1jax.plan.contracts import Contract, Lowered

AGREED = Contract(
    lowered=Lowered("0" * 16, {"m1_attention_forward": 4}, ()),
    compiler=("jax 1",),
    hbm=1 << 30,
    collectives={"all-gather over fsdp": {"count": 10, "bytes": 1 << 20}},
    kernels={"m1_attention_forward": 24},
)


def changed(**values):
    return dataclasses.replace(AGREED, **values)


def lowered(**values):
    return changed(lowered=dataclasses.replace(AGREED.lowered, **values))


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (changed(hbm=int(1.03 * (1 << 30))), "HBM: 1,024.00 MiB agreed, 1,054.72 MiB now (+3.0%)"),
        (changed(collectives={}), "all-gather over fsdp: 10 agreed, 0 now"),
        (changed(collectives={"all-gather over fsdp": {"count": 10, "bytes": 3 << 20}}), "1.00 MiB agreed, 3.00 MiB"),
        (changed(kernels={}), "kernel runs, m1_attention_forward: 24 agreed, 0 now"),
        (changed(whole_gathers=("bf16[20,8,8] by x",)), "a whole stacked parameter is gathered: bf16[20,8,8] by x"),
        (lowered(kernels={}), "kernel calls lowered, m1_attention_forward: 4 agreed, 0 now"),
        (lowered(float32_products=("8x8xf32 by 8x8xf32",)), "new float32 matrix product: 8x8xf32 by 8x8xf32"),
    ],
)
def test_what_moves_is_said_with_both_numbers(now, said):
    assert any(said in line for line in contracts.differences(AGREED, now))


def test_what_is_no_budget_may_move():
    now = lowered(fingerprint="1" * 16)
    assert contracts.differences(AGREED, dataclasses.replace(now, hbm=int(1.01 * (1 << 30)), compiler=("jax 2",))) == []


def test_a_contract_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "contract.json"
    file.write_text(json.dumps(dataclasses.asdict(AGREED)))
    assert contracts.load(file) == AGREED


def test_products_and_kernels_are_found_in_a_lowered_program():
    text = """
      %1 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] : (tensor<8x4xf32>, tensor<4x2xf32>) -> tensor<8x2xf32>
      %2 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] : (tensor<8x4xbf16>, tensor<4x2xbf16>) -> tensor<8x2xf32>
      %3 = stablehlo.custom_call @tpu_custom_call(%1) {backend_config = "", kernel_name = "m1_attention_forward"}
    """  # noqa: E501
    shown = contracts.lowered(text, "mark")
    assert shown.float32_products == ("8x4xf32 by 4x2xf32",) and shown.kernels == {"m1_attention_forward": 1}
