"""What may reach a terminal: text from files, stores and names must not move its cursor or change its state."""

import re

# C0 but for line breaks and tabs, DEL, C1, and what turns the direction of writing
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    r"""The text with control characters as escapes, such as ``\x1b``; line breaks and tabs stay."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)
