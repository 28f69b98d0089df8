"""When two short answers are the same text."""

import unicodedata

_EDGES = " \t\r\n.,;:!?\"'`*()[]{}<>。，；：！？、“”‘’（）【】《》"


def plain(text: str) -> str:
    """A text as answers are compared: NFKC, without case, one space between words, no punctuation at the ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(_EDGES)


def exact(response: str, reference: str) -> bool:
    """Whether two answers are the same by `plain`; an empty one is never right."""
    own = plain(response)
    return bool(own) and own == plain(reference)
