"""FLOPs against counts by hand, key by key."""

import dataclasses

import pytest

from m1jax.plan import flops
from tests.parallel import toy

MODEL = dataclasses.replace(toy.config().model, num_layers=2, window=3)


def by_hand(length, again):
    """(model, hardware) FLOPs of training on a row of `length` tokens: every product of every layer, one by one."""
    hidden, ffn, vocab, tokens = MODEL.hidden, MODEL.ffn, MODEL.vocab_size, length
    model = hardware = 0
    for kind, heads, kv, dim in (("global", 8, 2, 4), ("window", 8, 4, 4)):
        matrices = [hidden * heads * dim, *2 * [hidden * kv * dim], heads * dim * hidden, *3 * [hidden * ffn]]
        forward = sum(2 * size * tokens for size in matrices)
        seen = sum(min(t + 1, 3) if kind == "window" else t + 1 for t in range(length))
        product = 2 * heads * dim * seen  # of one pair of matrices under the mask
        model += 3 * forward + 6 * product  # scores, values; dv, dp, dq, dk
        hardware += (3 + again) * forward + (7 + 2 * again) * product  # and the scores once more
    head = 3 * 2 * hidden * vocab * tokens
    return model + head, hardware + head


@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("dots", 0), ("block", 1), ("offload", 1)])
@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_training_flops_are_those_counted_by_hand(remat, again, length):
    found = flops.per_token(MODEL, length, dataclasses.replace(toy.config().train, remat=remat))
    model, hardware = by_hand(length, again)
    assert found.model * length == pytest.approx(model)
    assert found.hardware * length == pytest.approx(hardware)


def test_a_decoded_token_sees_its_context_and_itself():
    seen = {"global": 10, "window": 3}
    expected = sum(
        2 * (MODEL.hidden * 4 * (16 + 2 * kv) + 3 * MODEL.hidden * MODEL.ffn) + 4 * 8 * 4 * seen[kind]
        for kind, kv in (("global", 2), ("window", 4))
    )
    assert flops.decode_per_token(MODEL, 9) == expected + 2 * MODEL.vocab_size * MODEL.hidden
