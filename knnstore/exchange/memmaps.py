"""Open the keys and values of other toolkits: two files of raw numbers, whose form must be known.

urvashik/knnlm writes float32 keys with int64 values, or float16 with int16; knn-transformers float16 with int32, and
the number of rows and the width in the names of the files; knn-box a ``config.json`` beside them. All are raw, even if
named ``.npy``; files saved by NumPy have a header with their form. If the sizes of the files fit several forms, the
user has to choose.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.errors import CorpusError, UsageError
from knnstore.exchange.rawfile import KEY_TYPES, VALUE_TYPES, Form, Memmaps, RawArray
from knnstore.files import storage_errors
from knnstore.wording import option

_MAGIC = b"\x93NUMPY"
_LARGEST_SIDECAR = 2**20


def open_memmaps(keys: Path, values: Path, given: Form) -> Memmaps:
    """Return the two files as keys and values.

    Raises CorpusError for files that aren't such a pair or don't fit ``given``, UsageError if the form is neither given
    nor can be determined.
    """
    for path in (keys, values):
        if not path.is_file():
            raise CorpusError(f"no such file: {path}; check the path, and the folder it is relative to")
    if keys.resolve() == values.resolve():
        raise UsageError(f"{option('keys')} and {option('vals')} are both {keys}: give the two files")
    heads = (_npy(keys), _npy(values))
    if heads[0] or heads[1]:
        return _saved_by_numpy(keys, values, heads, given)
    form = given.completed(_sidecar(keys, values)).completed(_named(keys))
    if form.dimension is None:
        hint = f"give {option('dim')}, such as {option('dim', 768)}"
        raise UsageError(f"{keys}: the width of a key can't be read from a raw file; {hint}")
    memmaps = _sized(keys, values, form)
    _refuse_unwritten(memmaps)
    return memmaps


def _sized(keys: Path, values: Path, form: Form) -> Memmaps:
    """Return the files with the types and rows that fit their sizes and what is known of them."""
    assert form.dimension is not None
    size, value_size = keys.stat().st_size, values.stat().st_size
    fits = []
    for key_type in KEY_TYPES:
        for value_type in VALUE_TYPES:
            if key_type != (form.key_type or key_type) or value_type != (form.value_type or value_type):
                continue
            rows, left = divmod(size, form.dimension * np.dtype(key_type).itemsize)
            value_rows, value_left = divmod(value_size, np.dtype(value_type).itemsize)
            # a file may be longer than the data written into it, but only if the number of rows is known
            exact = (rows, left, value_left) == (value_rows, 0, 0) and form.rows in (None, rows)
            longer = form.rows is not None and min(rows, value_rows) >= form.rows
            if rows and (exact or longer):
                types = replace(form, key_type=key_type, value_type=value_type, rows=form.rows or rows)
                fits.append((exact, _pair(keys, values, types)))
    candidates = [memmaps for exact, memmaps in fits if exact] or [memmaps for _, memmaps in fits]
    if not candidates:
        raise CorpusError(_misfit(keys, values, form))
    if len(candidates) > 1:
        choice = ", or ".join(memmaps.found for memmaps in candidates)
        raise UsageError(f"{keys} and {values} fit {choice}: give {option('key_type')} or {option('value_type')}")
    return candidates[0]


def _pair(keys: Path, values: Path, form: Form) -> Memmaps:
    """Return the two files, with a completely known form."""
    assert form.dimension and form.rows and form.key_type and form.value_type
    found = f"{form.rows:,} rows of {form.dimension} {form.key_type} with {form.value_type} values"
    key_array = RawArray(keys, form.key_type, form.rows, form.dimension)
    return Memmaps(key_array, RawArray(values, form.value_type, form.rows, 1), found)


def _misfit(keys: Path, values: Path, form: Form) -> str:
    assert form.dimension is not None
    size, value_size = keys.stat().st_size, values.stat().st_size
    key_rows = " or ".join(
        f"{size / (form.dimension * np.dtype(kind).itemsize):,.7g} rows of {form.dimension} {kind}"
        for kind in ([form.key_type] if form.key_type else KEY_TYPES)
    )
    value_rows = " or ".join(
        f"{value_size / np.dtype(kind).itemsize:,.7g} {kind}"
        for kind in ([form.value_type] if form.value_type else reversed(VALUE_TYPES))
    )
    wanted = f", and {form.rows:,} rows are requested" if form.rows else ""
    return (
        f"{keys} ({size:,} bytes: {key_rows}) and {values} ({value_size:,} bytes: {value_rows}) don't hold "
        f"the same number of rows{wanted}: check {option('dim')}, and that the files are complete and belong together; "
        f"if they are longer than the data written into them, give {option('rows')}"
    )


def _refuse_unwritten(memmaps: Memmaps) -> None:
    """Raise CorpusError if the file is larger than the data written into it, so that its last keys are all zeros."""
    keys, rows = memmaps.keys, memmaps.rows

    def written(row: int) -> bool:
        return bool(keys.read(row, row + 1).any())

    if written(rows - 1):
        return
    low, high = 0, rows - 1  # rows before low are written, rows from high on aren't
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if written(middle) else (low, middle)
    raise CorpusError(
        f"{keys.path}: the keys from row {low:,} of {rows:,} on are all zeros, as if never written; "
        f"give {option('rows', low)} to leave them out"
        if low
        else f"{keys.path}: every key is zero; give the file to which the keys were written"
    )


def _npy(path: Path) -> tuple[tuple[int, ...], str, int] | None:
    """Return shape, dtype and offset of a file written by ``numpy.save``; None for a raw file."""
    with storage_errors("read", path), path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
        try:
            file.seek(0)
            version = np.lib.format.read_magic(file)
            formats: Any = np.lib.format
            read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise CorpusError(f"{path} starts like a .npy file but its header can't be read: {error}") from error
        if dtype.hasobject or dtype.names is not None:
            raise CorpusError(f"{path} holds pickled objects, which are never loaded: save it as plain numbers")
        if fortran and len(shape) > 1 and min(shape) > 1:
            raise CorpusError(f"{path} is in Fortran order: save it with numpy.ascontiguousarray")
        return tuple(int(n) for n in shape), dtype.newbyteorder("=").name, file.tell()


def _saved_by_numpy(keys: Path, values: Path, heads: Any, given: Form) -> Memmaps:
    if heads[0] is None or heads[1] is None:
        raise CorpusError(f"one of {keys} and {values} is raw and the other saved by NumPy: they aren't a pair")
    (shape, key_type, offset), (value_shape, value_type, value_offset) = heads
    if (
        len(shape) != 2
        or 0 in shape
        or (value_shape[0] if value_shape else 0) != shape[0]
        or np.prod(value_shape) != shape[0]
    ):
        raise CorpusError(
            f"{keys} {shape} and {values} {value_shape} aren't keys (rows, width) and values (rows,) of as many rows"
        )
    if key_type not in KEY_TYPES or value_type not in VALUE_TYPES:
        raise CorpusError(
            f"{keys} is {key_type} and {values} {value_type}: keys are {' or '.join(KEY_TYPES)}, "
            f"values {', '.join(VALUE_TYPES)}"
        )
    form = Form(shape[1], shape[0], key_type, value_type)
    _require_given(keys, form, given)
    for path, array_shape, kind, start in (
        (keys, shape, key_type, offset),
        (values, value_shape, value_type, value_offset),
    ):
        needed = start + int(np.prod(array_shape, dtype=object)) * np.dtype(kind).itemsize
        if path.stat().st_size < needed:
            raise CorpusError(f"{path} is truncated: it has {path.stat().st_size:,} bytes, its header needs {needed:,}")
    pair = _pair(keys, values, replace(form, rows=given.rows or shape[0]))
    pair = replace(pair, keys=replace(pair.keys, offset=offset), values=replace(pair.values, offset=value_offset))
    _refuse_unwritten(pair)
    return pair


def _require_given(keys: Path, form: Form, given: Form) -> None:
    for name, parameter in (("dimension", "dim"), ("key_type", "key_type"), ("value_type", "value_type")):
        wanted, actual = getattr(given, name), getattr(form, name)
        if wanted not in (None, actual):
            raise CorpusError(f"the header of {keys} has {option(parameter, actual)}, not {wanted}: omit the option")
    if given.rows is not None and form.rows is not None and given.rows > form.rows:
        raise CorpusError(f"{keys} has {form.rows:,} rows, not {given.rows:,}: lower {option('rows')}")


def _named(keys: Path) -> Form:
    """Return rows and width from a name such as ``dstore_gpt2_116988150_768_keys.npy``."""
    match = re.search(r"_(\d+)_(\d+)_keys(?:\.npy)?$", keys.name)
    return Form(int(match[2]), int(match[1])) if match and int(match[1]) and int(match[2]) else Form()


def _sidecar(keys: Path, values: Path) -> Form:
    """Return rows, width and types from knn-box's ``config.json`` beside the files."""
    path = keys.parent / "config.json"
    if not path.is_file() or path.stat().st_size > _LARGEST_SIDECAR or values.parent != keys.parent:
        return Form()
    try:
        about = json.loads(path.read_bytes())["data_infos"]
        key, value = about[keys.stem], about[values.stem]
        rows, dimension = (int(number) for number in key["shape"])
        types = [str(entry["dtype"]).removeprefix("torch.") for entry in (key, value)]
    except (ValueError, KeyError, TypeError, RecursionError):  # a config.json of something else
        return Form()
    if types[0] not in KEY_TYPES or types[1] not in VALUE_TYPES:
        raise CorpusError(f"{path}: keys of {types[0]} with values of {types[1]} can't be read")
    return Form(dimension, rows, types[0], types[1])
