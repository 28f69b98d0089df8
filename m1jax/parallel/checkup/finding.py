"""The result of one check."""

import dataclasses

OK, SLOW, BROKEN, LEFT_OUT = "ok", "slow", "broken", "left out"
"""States of a finding."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    check: str
    state: str
    """ok, slow, broken or left out."""
    found: str
    advice: str = ""
