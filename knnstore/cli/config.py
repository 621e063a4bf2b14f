"""``knnstore.toml``: defaults for the options, one table per command. The command line takes precedence."""

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from knnstore.errors import UsageError

CONFIG_FILE = "knnstore.toml"
_LARGEST = 2**20
# Options that a file must not set, because a default must not discard finished work.
_NEVER = {"overwrite"}


def read_defaults(path: Path, group: click.Group) -> dict[str, dict[str, Any]]:
    """Return the defaults by command and parameter, in the form of click's ``default_map``.

    A key at the top level applies to every command that has the option. Raises UsageError with the file and the key if
    the key is unknown or its value has the wrong type or is out of range.
    """
    table = _load(path)
    defaults: dict[str, dict[str, Any]] = {name: {} for name in group.commands}
    for key, value in table.items():
        if isinstance(value, dict):
            continue
        owners = [command for command in group.commands.values() if _find(command, key) is not None]
        if not owners:
            options = {_key(option) for command in group.commands.values() for option in _options(command)}
            raise UsageError(f"{path}: {key!r} isn't an option of any command{_meant(key, options)}")
        for command in owners:
            defaults[str(command.name)] |= _default(command, key, value, f"{path}: {key}")
    for name, section in table.items():
        if not isinstance(section, dict):
            continue
        if name not in group.commands:
            raise UsageError(f"{path}: [{name}] isn't a command{_meant(name, set(group.commands))}")
        for key, value in section.items():
            defaults[name] |= _default(group.commands[name], key, value, f"{path}: [{name}] {key}")
    return defaults


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path} has {path.stat().st_size:,} bytes; the limit is {_LARGEST:,}")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{path} isn't valid TOML: {error}") from error


def _default(command: click.Command, key: str, value: Any, where: str) -> dict[str, Any]:
    option = _find(command, key)
    if option is None:
        known = {_key(option) for option in _options(command)}
        raise UsageError(f"{where} isn't an option of 'knnstore {command.name}'{_meant(key, known)}")
    if option.name in _NEVER:
        raise UsageError(
            f"{where} can't be set in a file, because it discards finished work: give it on the command line"
        )
    assert option.name is not None
    return {option.name: _checked(option, value, f"{where} = {value!r}", command)}


def _checked(option: click.Option, value: Any, where: str, command: click.Command) -> Any:
    if isinstance(value, bool) != bool(option.is_flag):
        raise UsageError(f"{where}: expected {'true or false' if option.is_flag else 'a value'}")
    if option.multiple and not isinstance(value, list):
        value = [value]
    if isinstance(value, dict) or (isinstance(value, list) and not option.multiple):
        raise UsageError(f"{where}: expected a single value")
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
    """Return the option's name as on the command line, without the leading dashes."""
    return max(option.opts, key=len).lstrip("-")


def _meant(name: str, known: set[str]) -> str:
    close = get_close_matches(name.replace("_", "-"), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
