"""Text cut into passages: lines, or sentences of long lines."""

import re

# Never longer than this many characters, so that a text without any of the marks is cut too.
_LONGEST = 400
_PASSAGE = re.compile(rf".{{1,{_LONGEST}}}?(?:[.!?][ \t]+|[。！？]|\n+|\Z)|.{{1,{_LONGEST}}}", re.DOTALL)


def passages(text: str) -> list[str]:
    """The text in passages, which make it up when joined."""
    return _PASSAGE.findall(text)
