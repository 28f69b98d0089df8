"""The names of the fields of a user's records and of the domains in them: data.fields and data.domain_names."""

from collections.abc import Mapping, Sequence

from m1jax.config.domains import check_known, nearest
from m1jax.errors import UserError

FIELDS = ("text", "id", "source", "language", "domain", "difficulty")
"""What a record may hold; also the fields' names by default (data.fields changes them)."""
OTHERS = "*"
"""The key of data.domain_names that means every value that is not listed."""


def check_records(fields: Mapping[str, str], domain_names: Mapping[str, str], domains: Sequence[str]) -> None:
    """Raises UserError where data.fields has an unknown key or no text, or data.domain_names names no domain."""
    for name in fields:
        if name not in FIELDS:
            raise UserError(
                f"config key data.fields.{name} is not a field of records: choose among {', '.join(FIELDS)} (did you "
                f"mean {nearest(name, FIELDS)!r}?)."
            )
    if fields.get("text") == "":
        raise UserError("config key data.fields.text is empty: name the field that holds the text.")
    for value, domain in domain_names.items():
        if domain:
            check_known(f"config key data.domain_names.{value}", domain, domains)
