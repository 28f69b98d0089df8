"""Seeds of 63 bits: each its own key, and others refused in a sentence."""

import itertools

import jax
import numpy as np
import pytest

from m1jax import model
from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.generate.sampling import row_keys
from m1jax.model import seeds
from tests.model import small

APART = (0, 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 62, (1 << 63) - 1)
REFUSED = (-1, 1 << 63, 1 << 64, 1 << 70)


def test_every_bit_of_a_seed_counts():
    data = [jax.random.key_data(seeds.key(seed)).tolist() for seed in APART]
    assert all(a != b for a, b in itertools.combinations(data, 2))
    rows = [jax.random.key_data(row_keys(seed, 2)).tolist() for seed in APART]
    assert all(a != b for a, b in itertools.combinations(rows, 2))


def test_a_seed_of_32_bits_is_that_of_jax():
    for seed in (0, 7, (1 << 31) - 1):
        assert (jax.random.key_data(seeds.key(np.int64(seed))) == jax.random.key_data(jax.random.key(seed))).all()


def test_models_of_two_seeds_that_share_their_low_bits_differ():
    config = small.config(num_layers=2)
    one, other = (jax.tree.leaves(model.create(config, seed)[1]) for seed in (0, 1 << 32))
    assert not all((a == b).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("seed", REFUSED)
def test_others_are_refused_in_a_sentence(seed):
    for refuse in (seeds.key, lambda seed: row_keys(seed, 1)):
        with pytest.raises(UserError, match=rf"^seed must be a whole number from 0 to 2\^63 - 1, got {seed}\.$"):
            refuse(seed)
    with pytest.raises(UserError, match=rf"config key seed must be .*, got {seed}\."):
        config_file.load("quickstart", [f"seed={seed}"])
