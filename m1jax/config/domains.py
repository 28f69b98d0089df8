"""Domains: the names that a config gives to its kinds of text, and their order.

A domain is only a name. Text gets one (text/records.py), a stage's mixture reads it as "domain:NAME", the
tokenizer learns it in the order of `data.vocab_parts`, and tables list it in the order of `data.domains`.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from m1jax.config.stages import bounded
from m1jax.errors import UserError

KEY_PREFIX = "domain:"
"""A key of a mixture that begins with it means all sources of a domain."""
LONGEST = 40
_NAME = re.compile(r"\w(?:[\w .-]*\w)?")


@dataclass(frozen=True)
class VocabPartConfig:
    """One part of the tokenizer's vocabulary: the ids that the text of `domain` decides."""

    domain: str
    ids: int = bounded(0, default=0)
    """How many; the first part's include special tokens and bytes. 0: an equal share of what other parts leave."""


def is_name(name: str) -> bool:
    """Whether a domain may have this name: up to 40 letters, digits, spaces, _, . and -, with a letter or digit at
    either end. So a name is never empty and holds no ":", no "/" and no control character.
    """
    return len(name) <= LONGEST and _NAME.fullmatch(name) is not None


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name`; `known` is not empty."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def ordered(names: Iterable[str], domains: Sequence[str]) -> list[str]:
    """Different names in the order of `domains`; those that it does not list follow in alphabetical order."""
    present = set(names)
    return [*(name for name in domains if name in present), *sorted(present.difference(domains))]


def check_known(where: str, domain: str, domains: Sequence[str]) -> None:
    """Raises UserError where `domains` does not list `domain`; `where` says what names it."""
    if domain not in domains:
        raise UserError(
            f"{where} names the domain {domain!r}, which is not in data.domains ({', '.join(domains)}): did you mean "
            f"{nearest(domain, domains)!r}? A new domain must be added to data.domains."
        )


def check_names(domains: Sequence[str]) -> None:
    """Raises UserError where a name of data.domains cannot be one, or comes twice."""
    for i, name in enumerate(domains):
        if not is_name(name):
            raise UserError(
                f"config key data.domains.{i} = {name!r} is not a name: use 1 to {LONGEST} letters, digits, spaces, "
                f"_, . and -, with a letter or digit at both ends."
            )
        if name in domains[:i]:
            raise UserError(f"config key data.domains.{i} = {name!r} is used twice: list each domain once.")


def check_keys(where: str, keys: Iterable[str], domains: Sequence[str]) -> None:
    """Raises UserError where one of a mapping's keys means a domain that `domains` does not list."""
    for key in keys:
        if key.startswith(KEY_PREFIX):
            check_known(f"config key {where}.{key}", key.removeprefix(KEY_PREFIX), domains)


def check_parts(parts: Sequence[VocabPartConfig], vocab_size: int, domains: Sequence[str]) -> None:
    """Raises UserError where parts name an unknown domain or one twice, or their ids do not make `vocab_size`."""
    for i, part in enumerate(parts):
        check_known(f"config key data.vocab_parts.{i}.domain", part.domain, domains)
        if part.domain in [other.domain for other in parts[:i]]:
            raise UserError(f"config key data.vocab_parts.{i}.domain = {part.domain!r} is used twice: join the parts.")
    total = sum(part.ids for part in parts)
    left_open = any(not part.ids for part in parts)
    if total + left_open > vocab_size:
        raise UserError(
            f"config key data.vocab_parts gives {total:,} ids to its parts, too many for data.vocab_size = "
            f"{vocab_size:,}: lower an `ids`."
        )
    if parts and not left_open and total < vocab_size:
        raise UserError(
            f"config key data.vocab_parts gives {total:,} ids to its parts, fewer than data.vocab_size = "
            f"{vocab_size:,}: leave out the last `ids`, so that this part decides the rest."
        )
