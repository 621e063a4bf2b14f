"""How messages name parameters and commands: ``nlist=64`` in Python, ``--nlist 64`` on the command line.

As with gettext, a process speaks one language at a time: Python, until a command switches. The tasks of a command
take its language along to the workers. Words are chosen when a message is made, so call these functions then, and
not when a module is imported.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from keyword import iskeyword

_OPPOSITES = {"tuned": "retune"}
_shell = False


def in_shell() -> bool:
    """Return whether messages are for the command line."""
    return _shell


@contextmanager
def speaking(*, shell: bool) -> Iterator[None]:
    """Word the messages made within for the command line, or for Python."""
    global _shell  # noqa: PLW0603 - the language of the process with all its threads
    before, _shell = _shell, shell
    try:
        yield
    finally:
        _shell = before


def option(name: str, value: object = None, *, quoted: bool = False) -> str:
    """Return a parameter, with its value if one is given: ``nlist=64`` or ``--nlist 64``.

    A list gives several values and is quoted for the shell: ``exclude=['*.c']`` or ``--exclude '*.c'``. ``quoted``:
    show the value in quotes, whatever it is.
    """
    if not _shell:
        return f"{name}={'' if value is None else repr(value)}"
    words = _arguments(name, repr(value) if quoted else value)
    return shlex.join(words) if isinstance(value, list) else " ".join(words)


def command(name: str, *words: str, **options: object) -> str:
    """Return a call or a command line: ``knnstore.index(overwrite=True)`` or ``'knnstore index --overwrite'``.

    Several ``words``, as the stores of a merge, are one list in Python.
    """
    if _shell:
        flags = [word for given in options.items() for word in _arguments(*given)]
        return repr(shlex.join(["knnstore", name, *words, *flags]))
    function = f"knnstore.{name}{'_' * iskeyword(name)}"
    if "help" in options:
        return f"help({function})"
    first = [repr(words[0] if len(words) == 1 else list(words))] if words else []
    return f"{function}({', '.join([*first, *(f'{key}={value!r}' for key, value in options.items())])})"


def _arguments(name: str, value: object) -> list[str]:
    flag = f"--{name.rstrip('_').replace('_', '-')}"
    match value:
        case None | True:
            return [flag]
        case False:
            return [f"--{_OPPOSITES.get(name) or f'no-{flag[2:]}'}"]
        case float():
            return [flag, f"{value:g}"]
        case list():
            return [word for each in value for word in (flag, str(each))]
        case _:
            return [flag, str(value)]
