"""Rewards: rules, their sum, and what is no number."""

import math
import re
import sys
import types

import numpy as np
import pytest

from m1jax.errors import UserError
from m1jax.rollouts import rewards
from m1jax.rollouts.rewards import Case

CASES = [Case("Which?", "Cornea.", "cornea"), Case("Which?", "lens", "cornea")]


def total(**weights):
    return rewards.total(rewards.each({name: rewards.named(name) for name in weights}, CASES), weights, len(CASES))


def test_rewards_are_added_with_their_weights_in_float32():
    found = total(exact=1.0, length=0.5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [1 + 0.5 * (1 - 1 / 6), 0.5 * (1 - 2 / 6)], rtol=1e-6)


def test_a_response_of_a_form():
    for response, value in [("one line", 1), ("", 0), ("two\nlines", 0), ("no no no no", 0), ("no no no yes", 1)]:
        assert rewards.form("?", response, "") == value


def test_words_count_as_often_as_they_occur():
    for response, value in [("the cornea", 1), ("cornea", 2 / 3), ("the the cornea", 4 / 5), ("", 0), ("lens", 0)]:
        assert rewards.words("?", response, "The cornea") == pytest.approx(value)


def test_a_parent_of_the_entity_counts_half():
    names = {"hepatitis A": ["D:1"], "HAV infection": ["D:1"], "hepatitis": ["D:2"], "fever": ["D:3"]}
    entity = rewards.Entities(names, {"D:1": ["D:2"]})
    for said, value in [("HAV infection.", 1), ("Hepatitis", 0.5), ("fever", 0), ("unknown", 0), ("", 0)]:
        assert entity("?", said, "hepatitis A") == value
    assert entity("?", "hepatitis A", "hepatitis") == 0  # a child is no parent
    assert entity("?", "something new", "Something new") == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([1.0], "gave 1 numbers for 2 responses"),
        (None, "gave 0 numbers for 2 responses"),
        ([1.0, None], "gave None for the prompt that ends 'Which?'"),
        ([1.0, math.nan], "gave nan"),
        ([math.inf, 0.0], "gave inf"),
        (["1", 0.0], "gave '1'"),
    ],
)
def test_what_is_no_finite_number_is_refused(given, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        rewards.each({"own": lambda cases: given}, CASES)


def test_a_function_of_ones_own_is_named_by_its_module(monkeypatch):
    module = types.ModuleType("my_rewards")
    module.short = lambda prompt, response, reference: -len(response)
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    assert list(rewards.named("my_rewards:short")(CASES)) == [-7, -4]
    for name, sentence in [
        ("my_rewards:long", "cannot be read"),
        ("no_module_of_this_name:f", "cannot be read"),
        ("exakt", "did you mean 'exact'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            rewards.named(name)
