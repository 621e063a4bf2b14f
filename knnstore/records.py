"""Convert frozen dataclasses to JSON and back, checking every field when reading.

A store may come from a stranger, so records aren't trusted: unknown, missing or mistyped fields raise an error, and
nothing is looked up, imported or evaluated by a name found in the file.
"""

import dataclasses
import hashlib
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from knnstore.errors import CorruptStoreError
from knnstore.files.sealed import encode_json

T = TypeVar("T")


LATER = {"left_out": True}
"""Metadata of a field added after records of its kind had been written: omitted if it is None."""


def to_json(record: Any) -> Any:
    """Return the record as plain dicts, lists and scalars."""
    left_out = [field.name for field in dataclasses.fields(record) if field.metadata.get("left_out")]
    return {
        name: value for name, value in dataclasses.asdict(record).items() if name not in left_out or value is not None
    }


def fingerprint(value: Any) -> str:
    """Return the SHA-256, in hex, of a record or a JSON value in canonical form."""
    plain = to_json(value) if dataclasses.is_dataclass(value) else value
    return hashlib.sha256(encode_json(plain)).hexdigest()


def from_json(kind: type[T], value: Any, where: str) -> T:
    """Return the record of type ``kind`` in ``value``; ``where`` names the file in messages.

    Raises CorruptStoreError if a field is unknown, missing, of another type, or refused by the record itself.
    """
    if not isinstance(value, dict):
        raise CorruptStoreError(f"{where}: expected an object, found {type(value).__name__}")
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    names -= {field.name for field in dataclasses.fields(kind) if field.metadata.get("left_out")} - value.keys()  # type: ignore[arg-type]
    if names != value.keys():
        raise CorruptStoreError(f"{where}: fields {sorted(names ^ value.keys())} are missing or unknown")
    fields = {name: _parse(hints[name], value[name], f"{where}: {name}") for name in names}
    try:
        return kind(**fields)
    except ValueError as error:
        raise CorruptStoreError(f"{where}: {error}") from error


def _parse(hint: Any, value: Any, where: str) -> Any:  # noqa: PLR0911 - one return per kind of type
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _parse(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise CorruptStoreError(f"{where}: expected a list, found {type(value).__name__}")
        return tuple(_parse(arguments[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise CorruptStoreError(f"{where}: expected an object, found {type(value).__name__}")
        return {str(key): _parse(arguments[1], item, where) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise CorruptStoreError(f"{where}: {value!r:.40}… is too large for a float") from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise CorruptStoreError(f"{where}: expected {hint.__name__}, found {value!r:.40}")
    return value
