"""When answers are the same, and when numbers with units are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1jax.grading import numbers, same


@pytest.mark.parametrize(
    ("response", "reference", "right"),
    [
        ("Cornea.", "cornea", True),
        ("  the\n cornea ", "The cornea", True),
        ("“角膜”。", "角膜", True),
        ("ＣＯＲＮＥＡ", "cornea", True),
        ("cornea of the eye", "cornea", False),
        ("", "", False),
        (" . ", "cornea", False),
    ],
)
def test_answers_are_compared_without_case_space_and_punctuation_at_the_ends(response, reference, right):
    assert same.exact(response, reference) is right


@pytest.mark.parametrize(
    ("response", "reference", "right"),
    [
        ("The dose is 12.5 mg.", "12.5 mg", True),
        ("0.0125 g", "12.5 mg", True),
        ("12.5 g", "12.5 mg", False),
        ("1,250 µg/dL", "12.5 mg/L", True),
        ("1250 mcg/dl", "12.5 mg/L", True),
        ("90 min", "1.5 hours", True),
        ("90 mL", "90 mg", False),
        ("about 45%", "0.45", True),
        ("45%", "45 %", True),
        ("12.4", "12.5", True),
        ("12.3", "12.5", False),
        ("first 3, then 4", "4", True),
        ("-2.5e-3 mol", "-2.5 mmol", True),
        ("five", "5", False),
        ("5", "five", False),
        ("5 apples", "5", True),
        ("0", "0", True),
        ("0.001", "0", False),
    ],
)
def test_numbers_are_compared_in_their_units(response, reference, right):
    assert numbers.equal(response, reference) is right


@given(st.floats(1e-3, 1e6), st.sampled_from([("g", "mg", 1e3), ("L", "mL", 1e3), ("h", "min", 60), ("m", "cm", 100)]))
def test_a_quantity_is_itself_in_another_unit(value, units):
    large, small, factor = units
    assert numbers.equal(f"{value * factor:.8g} {small}", f"{value:.8g} {large}")
    assert not numbers.equal(f"{value * factor * 1.1:.8g} {small}", f"{value:.8g} {large}")


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_text_is_answered(response, reference):
    assert numbers.equal(response, reference) in (True, False)
    assert same.exact(response, reference) in (True, False)
