"""What a run tells a person: lines above the bar."""

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """One line for a person, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)


def first_line(error: Exception) -> str:
    """The error's first line, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
