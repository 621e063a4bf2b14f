"""Fields of records by name: ``a.b`` is the field ``b`` inside ``a``, unless a field is itself called ``a.b``."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from knnstore.corpus.text import UnusableTextError
from knnstore.errors import CorpusError
from knnstore.wording import option

_BYTES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_null,
)


def skip_hint() -> str:
    """Return what to do about a record without usable text."""
    return f"correct it or skip such records with {option('errors', 'skip')}"


def field_path(tree: Any, name: str) -> tuple[str, ...]:
    """Return the keys that lead through nested mappings to the field. Raises KeyError if it is missing."""
    if not isinstance(tree, Mapping):
        raise KeyError(name)
    if name in tree:
        return (name,)
    head, dot, rest = name.partition(".")
    while dot:
        with suppress(KeyError):
            return (head, *field_path(tree[head], rest))
        part, dot, rest = rest.partition(".")
        head = f"{head}.{part}"
    raise KeyError(name)


def string_in(record: Mapping[str, Any], name: str, hint: Callable[[], str]) -> str:
    """Return the string in a field of a JSON object. Raises UnusableTextError, with ``hint``, if there is none."""
    try:
        value = reduce(lambda inner, key: inner[key], field_path(record, name), record)
    except KeyError:
        names = f"{list(record)[:8]!r:.200}"
        raise UnusableTextError(f"no field {name!r} among {names}; {hint()}") from None
    if not isinstance(value, str):
        raise UnusableTextError(f"the field {name!r} is a {type(value).__name__}, not a string; {skip_hint()}")
    return value


def column_path(schema: Any, path: str, name: str, hint: Callable[[], str]) -> tuple[str, ...]:
    """Return the column, and the fields inside it, that hold the text of a Parquet file with that schema.

    Columns of strings, bytes or only nulls are text. Raises CorpusError, with the type, for other columns.
    """
    try:
        keys = field_path(_tree(schema), name)
    except KeyError:
        names = f"{schema.names[:8]!r:.200}"
        raise CorpusError(f"{path!r} has no column {name!r} among {names}; {hint()}") from None
    kind = schema.field(keys[0]).type
    for key in keys[1:]:
        kind = kind.field(key).type
    if not any(test(_plain(kind)) for test in _BYTES):
        raise CorpusError(f"{path!r} has {f'{kind!s:.100}'} in column {name!r}, not strings; {hint()}")
    return keys


def bytes_in(batch: Any, keys: tuple[str, ...]) -> Any:
    """Return the stored bytes of the texts, because neither Parquet nor pyarrow guarantees UTF-8."""
    column = batch.column(keys[0])
    column = pc.struct_field(column, keys[1:]) if keys[1:] else column
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return column.cast(pa.large_binary())


def _plain(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _tree(fields: Any) -> dict[str, Any]:
    """Return a schema or struct as nested mappings of the names that occur only once."""
    names = [field.name for field in fields]
    inner = {field.name: _tree(field.type) if pa.types.is_struct(field.type) else None for field in fields}
    return {name: tree for name, tree in inner.items() if names.count(name) == 1}
