"""Messages of a run for people, printed above the bar."""

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """Print a line, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
