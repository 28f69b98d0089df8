"""The parts of a tokenizer that is learnt from one domain after the other, as a config states them."""

import dataclasses
from collections.abc import Collection, Sequence

from m1jax.config import RunConfig
from m1jax.config.domains import ordered
from m1jax.errors import UserError
from m1jax.tokenizer.layout import FIRST_MERGE


@dataclasses.dataclass(frozen=True)
class Part:
    """Text that decides ids together: its domains, the ids that the config gives it (0: open), and the size after."""

    domains: tuple[str, ...]
    ids: int
    size: int

    @property
    def name(self) -> str:
        """Its domains as a sentence lists them."""
        return " and ".join(self.domains)


def order(config: RunConfig, present: Collection[str]) -> list[str]:
    """The domains among `present`, in the order in which they decide ids; those without a part come last."""
    named = [part.domain for part in config.data.vocab_parts]
    return ordered(present, [*named, *(domain for domain in config.data.domains if domain not in named)])


def parts_of(config: RunConfig, present: Collection[str]) -> list[Part]:
    """The parts of a tokenizer for a corpus of the domains `present`, which is not empty.

    They are those of data.vocab_parts, or where that is empty the domains of data.domains that are present. All other
    text joins the last part. Raises UserError where a domain of data.vocab_parts is not present.
    """
    data = config.data
    for part in data.vocab_parts:
        if part.domain not in present:
            raise UserError(
                f"{config.corpus} holds no {part.domain} text, which data.vocab_parts names: add such text to the "
                f"corpus, or remove this part."
            )
    named = [part.domain for part in data.vocab_parts] or data.domains
    count = max(sum(domain in present for domain in named), 1)
    domains = order(config, present)
    groups = [(domain,) for domain in domains[: count - 1]] + [tuple(domains[count - 1 :])]
    ids = [part.ids for part in data.vocab_parts] or [0] * count
    sizes = part_sizes(ids, data.vocab_size)
    return [Part(group, given, size) for group, given, size in zip(groups, ids, sizes, strict=True)]


def part_sizes(ids: Sequence[int], vocab_size: int) -> list[int]:
    """Size of the tokenizer after each part, the last of which is `vocab_size`.

    `ids` says how many ids each part decides, 0 leaves that open. Where all parts do, the first decides three quarters
    of the vocabulary and the others equal parts of the rest; else the open ones divide what is left equally.
    """
    if len(ids) > 1 and not any(ids):
        first = min(max(vocab_size * 3 // 4, FIRST_MERGE + 1), vocab_size)
        return [first + (vocab_size - first) * i // (len(ids) - 1) for i in range(len(ids))]
    opened, left = 0, vocab_size - sum(ids)
    sizes, size = [], 0
    for decided in ids:
        if not decided:
            decided = left * (opened + 1) // ids.count(0) - left * opened // ids.count(0)
            opened += 1
        size += decided
        sizes.append(size)
    return sizes
