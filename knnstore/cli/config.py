"""``knnstore.toml``: defaults for the options, a table a command. What is typed wins, then the file."""

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from knnstore.errors import UsageError

CONFIG_FILE = "knnstore.toml"
_LARGEST = 2**20
# Options that no file may set: a default must not discard finished work.
_NEVER = {"overwrite"}


def read_defaults(path: Path, group: click.Group) -> dict[str, dict[str, Any]]:
    """Defaults by command and parameter, as click's ``default_map`` takes them.

    A key at the top holds for every command that has the option. Raises UsageError that names the file and the key for
    one that is unknown, of another type or out of its range.
    """
    table = _load(path)
    defaults: dict[str, dict[str, Any]] = {name: {} for name in group.commands}
    for key, value in table.items():
        if isinstance(value, dict):
            continue
        owners = [command for command in group.commands.values() if _find(command, key) is not None]
        if not owners:
            options = {_key(option) for command in group.commands.values() for option in _options(command)}
            raise UsageError(f"{path}: {key!r} is no option of any command{_meant(key, options)}")
        for command in owners:
            defaults[str(command.name)] |= _default(command, key, value, f"{path}: {key}")
    for name, section in table.items():
        if not isinstance(section, dict):
            continue
        if name not in group.commands:
            raise UsageError(f"{path}: [{name}] is no command{_meant(name, set(group.commands))}")
        for key, value in section.items():
            defaults[name] |= _default(group.commands[name], key, value, f"{path}: [{name}] {key}")
    return defaults


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path} has {path.stat().st_size:,} bytes; at most {_LARGEST:,} are read")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{path} isn't TOML: {error}") from error


def _default(command: click.Command, key: str, value: Any, where: str) -> dict[str, Any]:
    option = _find(command, key)
    if option is None:
        known = {_key(option) for option in _options(command)}
        raise UsageError(f"{where} is no option of 'knnstore {command.name}'{_meant(key, known)}")
    if option.name in _NEVER:
        raise UsageError(f"{where} can't be a default, since it discards finished work: type it")
    assert option.name is not None
    return {option.name: _checked(option, value, f"{where} = {value!r}", command)}


def _checked(option: click.Option, value: Any, where: str, command: click.Command) -> Any:
    if isinstance(value, bool) != bool(option.is_flag):
        raise UsageError(f"{where}: {'true or false' if option.is_flag else 'a value'} is wanted")
    if option.multiple and not isinstance(value, list):
        value = [value]
    if isinstance(value, dict) or (isinstance(value, list) and not option.multiple):
        raise UsageError(f"{where}: one value is wanted")
    try:
        option.type_cast_value(click.Context(command), value)
    except click.BadParameter as error:
        raise UsageError(f"{where}: {error.message}") from error
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return value


def _options(command: click.Command) -> Iterator[click.Option]:
    return (parameter for parameter in command.params if isinstance(parameter, click.Option))


def _find(command: click.Command, key: str) -> click.Option | None:
    return next((option for option in _options(command) if _key(option) == key.replace("_", "-")), None)


def _key(option: click.Option) -> str:
    """The option's name as it is typed, without the dashes before it."""
    return max(option.opts, key=len).lstrip("-")


def _meant(name: str, known: set[str]) -> str:
    close = get_close_matches(name.replace("_", "-"), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f": there are {', '.join(sorted(known))}"
