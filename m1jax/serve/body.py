"""A JSON body, field by field: every field is taken with its type and range, and what is left over is refused."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from m1jax.serve.errors import RequestError


def parse(content: bytes) -> "Body":
    """The fields of a JSON object; raises RequestError for anything else."""
    try:
        found = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "a value that JSON does not have"
        raise RequestError(400, f"the body is not JSON ({reason}): send a JSON object in UTF-8.") from error
    if not isinstance(found, dict):
        raise RequestError(400, "the body must be a JSON object.")
    return Body(found)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class Body:
    """Takes fields out of an object; a field that is null counts as absent. Raises RequestError for what is wrong."""

    def __init__(self, fields: Mapping[str, Any]):
        self._left = dict(fields)
        self._known: set[str] = set()

    def take(self, name: str) -> Any:
        """A field as it is; None where it is absent."""
        self._known.add(name)
        return self._left.pop(name, None)

    def number(self, name: str, default: float, low: float, high: float, *, above: bool = False) -> float:
        """A number from `low` (with `above`, above it) to `high`."""
        value = self.take(name)
        if value is None:
            return default
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or (above and value == low):
            start = f"above {low:g}" if above else f"from {low:g}"
            until = f" up to {high:g}" if math.isfinite(high) else " on"
            raise wrong(name, f"must be a number {start}{until}", value)
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number in a range; None where it is absent."""
        value = self.take(name)
        if value is None:
            return None
        if not is_integer(value) or not low <= value <= high:
            raise wrong(name, f"must be a whole number from {low} to {high}", value)
        return int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(name, "must be true or false", value)
        return default if value is None else value

    def text(self, name: str) -> str | None:
        """A string; None where it is absent."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise wrong(name, "must be a string", value)
        return value

    def ignore(self, *names: str) -> None:
        """Fields that say nothing about the answer."""
        for name in names:
            self.take(name)

    def refuse(self, names: Mapping[str, str]) -> None:
        """Fields of which this server does not have what they ask for, each with the end of the sentence."""
        for name, instead in names.items():
            if self.take(name):
                raise RequestError(400, f"{name} is not supported: {instead}", name, "unsupported_parameter")

    def end(self) -> None:
        """Raises RequestError where a field is left that nothing has taken."""
        for name in [name for name, value in self._left.items() if value is not None]:
            near = difflib.get_close_matches(name, self._known, n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it."
            raise RequestError(400, f"{name[:100]!r} is no parameter of this request: {hint}", name[:100])


def is_integer(value: Any) -> bool:
    """Whether a JSON value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def wrong(name: str, sentence: str, value: Any) -> RequestError:
    """A field whose value is wrong, shown as far as it is short."""
    shown = json.dumps(value)
    return RequestError(400, f"{name} {sentence}, got {shown if len(shown) <= 60 else shown[:60] + '…'}.", name)


def strings(name: str, value: Any, most: int, longest: int) -> Sequence[str]:
    """A string or a list of strings, none empty, as a list."""
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise wrong(name, "must be a string or a list of strings, none empty", value)
    if len(found) > most or any(len(one) > longest for one in found):
        raise RequestError(400, f"{name} may have at most {most} strings of at most {longest} characters.", name)
    return found
