"""Numbers with units in answers."""

import re
from typing import NamedTuple

_NUMBER = re.compile(
    r"(?<![\w.])([-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*"
    r"([%‰]|[A-Za-zµμ°]+(?:\^?-?\d)?(?:\s?/\s?[A-Za-zµμ°]+(?:\^?-?\d)?)*)?"
)
_PREFIXES = {"": 1.0, "k": 1e3, "d": 1e-1, "c": 1e-2, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12}
_BASES = {"g": ("mass", 1.0), "l": ("volume", 1.0), "m": ("length", 1.0), "mol": ("amount", 1.0),
          "pa": ("pressure", 1.0), "s": ("time", 1.0), "j": ("energy", 1.0), "w": ("power", 1.0),
          "hz": ("rate", 1.0)}  # fmt: skip
_OTHERS = {
    "%": ("", 1e-2), "‰": ("", 1e-3), "mcg": ("mass", 1e-6), "min": ("time", 60.0), "mins": ("time", 60.0),
    "minute": ("time", 60.0), "minutes": ("time", 60.0), "h": ("time", 3600.0), "hr": ("time", 3600.0),
    "hrs": ("time", 3600.0), "hour": ("time", 3600.0), "hours": ("time", 3600.0), "d": ("time", 86400.0),
    "day": ("time", 86400.0), "days": ("time", 86400.0), "week": ("time", 604800.0), "weeks": ("time", 604800.0),
    "mmhg": ("pressure", 133.322), "cal": ("energy", 4.184), "kcal": ("energy", 4184.0), "lb": ("mass", 453.592),
    "in": ("length", 0.0254), "sec": ("time", 1.0), "secs": ("time", 1.0),
}  # fmt: skip


class Quantity(NamedTuple):
    """A number in the base units of what it measures; `of` names that, such as "mass/volume", empty without a unit."""

    value: float
    of: str


def quantity(text: str) -> Quantity | None:
    """The last number of a text with the unit behind it; None where there is none. Other words are ignored."""
    found = [match for match in _NUMBER.finditer(text) if any(c.isdigit() for c in match[1] or "")]
    if not found:
        return None
    value = float(found[-1][1].replace(",", "").replace("−", "-"))
    unit = _unit(found[-1][2] or "")
    return Quantity(value, "") if unit is None else Quantity(value * unit[1], unit[0])


def equal(response: str, reference: str, tolerance: float = 0.01) -> bool:
    """Whether the last numbers of two answers agree within a share of the reference's.

    Units are converted. Where only one side has a unit, the numbers are compared as they are written. A reference
    without a number is never met.
    """
    own, right = quantity(response), quantity(reference)
    if own is None or right is None or (own.of != right.of and own.of and right.of):
        return False
    if own.of != right.of:  # one side without a unit: the number as it is written
        plain_own, plain_right = _written(response), _written(reference)
        return abs(plain_own - plain_right) <= tolerance * abs(plain_right)
    return abs(own.value - right.value) <= tolerance * abs(right.value)


def _written(text: str) -> float:
    found = [match[1] for match in _NUMBER.finditer(text) if any(c.isdigit() for c in match[1] or "")]
    return float(found[-1].replace(",", "").replace("−", "-"))


def _unit(text: str) -> tuple[str, float] | None:
    """(what it measures, factor to the base unit) of a unit such as mg/dL; None where a part is not known."""
    dimension, factor = [], 1.0
    for i, part in enumerate(re.split(r"\s?/\s?", text)) if text else ():
        found = _simple(part)
        if found is None:
            return None
        dimension.append(found[0])
        factor = factor / found[1] if i else factor * found[1]
    return "/".join(dimension).strip("/") if any(dimension) else "", factor


def _simple(text: str) -> tuple[str, float] | None:
    name = text.replace("µ", "u").replace("μ", "u")
    for known in (name, name.lower()):
        if known in _OTHERS:
            return _OTHERS[known]
    lower = name.lower()
    for base, (dimension, factor) in sorted(_BASES.items(), key=lambda item: -len(item[0])):
        prefix = lower.removesuffix(base)
        if prefix != lower and prefix in _PREFIXES:
            return dimension, _PREFIXES[prefix] * factor
    return None
