"""The names of the fields of a user's records and of the domains in them: data.fields and data.domain_names."""

from collections.abc import Mapping, Sequence

from m1jax.config.domains import check_known, nearest
from m1jax.errors import UserError

FIELDS = ("text", "id", "source", "language", "domain", "difficulty")
"""What a record may hold; also the fields' names by default (data.fields changes them)."""
CONVERSATION_FIELDS = ("messages", "question", "answer", "system")
"""What the record of a conversation may hold beside `id` and what follows it: see text/conversations.py."""
PREFERENCE_FIELDS = ("chosen", "rejected")
"""What the record of a preference holds beside a question: see text/preference_records.py."""
OTHERS = "*"
"""The key of data.domain_names that means every value that is not listed."""


def check_records(fields: Mapping[str, str], domain_names: Mapping[str, str], domains: Sequence[str]) -> None:
    """Raises UserError where data.fields has an unknown key, an empty name or half of a conversation, or
    data.domain_names names no domain.
    """
    known = (*FIELDS, *CONVERSATION_FIELDS, *PREFERENCE_FIELDS)
    for name in fields:
        if name not in known:
            raise UserError(
                f"config key data.fields.{name} is not a field of records: choose among {', '.join(known)} (did you "
                f"mean {nearest(name, known)!r}?)."
            )
    for name in ("text", "messages", "question", "answer", *PREFERENCE_FIELDS):
        if fields.get(name) == "":
            raise UserError(f"config key data.fields.{name} is empty: name the field that holds the {name}.")
    if ("question" in fields) != ("answer" in fields) and fields.keys().isdisjoint(PREFERENCE_FIELDS):
        given, other = ("question", "answer") if "question" in fields else ("answer", "question")
        raise UserError(f"config key data.fields.{given} needs data.fields.{other} beside it: name both fields.")
    for value, domain in domain_names.items():
        if domain:
            check_known(f"config key data.domain_names.{value}", domain, domains)
