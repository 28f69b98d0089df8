"""Seeds: which there are."""

import operator
from typing import SupportsIndex

from m1jax.errors import UserError

LIMIT = 1 << 63
"""Seeds are below it: what a signed number of 64 bits holds, in every file and language that a seed passes through."""


def checked(seed: SupportsIndex, what: str = "seed") -> int:
    """The seed as an int; raises UserError, which calls it `what`, where it is none of 0 to 2^63 - 1."""
    number = operator.index(seed)
    if not 0 <= number < LIMIT:
        raise UserError(f"{what} must be a whole number from 0 to 2^63 - 1, got {number}.")
    return number
