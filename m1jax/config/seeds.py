"""The range of seeds."""

import operator
from typing import SupportsIndex

from m1jax.errors import UserError

LIMIT = 1 << 63
"""Seeds are below it: every file format and language in use holds them as a signed number of 64 bits."""


def checked(seed: SupportsIndex, what: str = "seed") -> int:
    """The seed as an int; raises UserError if it is not in 0 to 2^63 - 1, and calls it `what` there."""
    number = operator.index(seed)
    if not 0 <= number < LIMIT:
        raise UserError(f"{what} must be a whole number from 0 to 2^63 - 1, got {number}.")
    return number
