"""Mutations of a store's files, with or without valid checksums."""

import hashlib
import io
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numcodecs import zstd

from knnstore.datastore.commits import chunk_number
from knnstore.files import CHECKSUM_FIELD, seal_json

Files = dict[str, bytes]
_NUMBERS = (-1, 0, 1, 7, 2**31, 2**32, 2**40, 2**50, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308, -0.0)
_TEXTS = ("", "x" * 300, "../../etc/passwd", "/etc/passwd", "\0", "\x1b[2J")
_VALUES: tuple[Any, ...] = (*_NUMBERS, *_TEXTS, None, True, [], {}, [[]], {"a": 1})
_NAMES = ("\x1b[2J../../x\0", "0000", None)
_WORDS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)


def mutate(generator: random.Random, files: Files, root: Path) -> str:
    """Write a mutated copy of the store's files to ``root``; return the kind of mutation."""
    changed = dict(files)
    kind = generator.choice(list(_KINDS))
    name = _KINDS[kind](generator, changed) if kind in _KINDS else ""
    if kind != "bytes" or generator.random() < 0.5:
        reseal(changed, name)
    for path, data in changed.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    if kind == "links":
        _plant(generator, root / name)
    return kind


def _bytes(generator: random.Random, files: Files) -> str:
    name = generator.choice(sorted(files))
    data = bytearray(files[name])
    how = generator.randrange(5)
    if how == 0:
        for _ in range(generator.randint(1, 20)):
            if data:
                data[generator.randrange(len(data))] = generator.randrange(256)
    elif how == 1:
        del data[generator.randrange(len(data) + 1) :]
    elif how == 2:
        data += bytes(generator.randrange(1, 5000))
    elif how == 3:
        data = bytearray(files[generator.choice(sorted(files))])
    else:
        del files[name]
        return name
    files[name] = bytes(data)
    return name


def _json(generator: random.Random, files: Files) -> str:
    name = generator.choice(sorted(path for path in files if path.endswith(".json")))
    value = json.loads(files[name])
    value.pop(CHECKSUM_FIELD, None)
    for _ in range(generator.choice((1, 1, 1, 3))):
        _twist(generator, value)
    if generator.random() < 0.02:
        files[name] = b"[" * 100_000
    else:
        files[name] = json.dumps(value).encode() if name.endswith("zarr.json") else _sealed(value)
    return name


def _twist(generator: random.Random, value: Any) -> None:
    """Change one leaf, key or element somewhere below ``value``."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    if not places:
        return
    node, key = generator.choice(places)
    how = generator.random()
    if how < 0.1:
        del node[key]
    elif how < 0.2 and isinstance(node, dict):
        node[generator.choice(("extra", "", "crc32c "))] = 1
    elif how < 0.3 and isinstance(node[key], list) and node[key]:
        node[key] = node[key] * generator.choice((2, 50_000))
    elif how < 0.6 and isinstance(node[key], int | float):
        node[key] = generator.choice(_NUMBERS)
    else:
        node[key] = generator.choice(_VALUES)


def _words(generator: random.Random, files: Files) -> str:
    """Put extreme numbers into a chunk, with a valid checksum."""
    name = generator.choice(sorted(path for path in files if chunk_number(path) is not None))
    body = files[name][:-4]
    packed = body[:4] == b"\x28\xb5\x2f\xfd"
    data = bytearray(zstd.decompress(body)) if packed else bytearray(body)
    width = generator.choice((1, 2, 4, 8))
    for _ in range(generator.choice((1, 4, 64))):
        at = generator.randrange(max(1, len(data) // width)) * width
        data[at : at + width] = (generator.choice(_WORDS) % 2 ** (8 * width)).to_bytes(width, "little")
    if generator.random() < 0.1:  # a NaN in every place
        data = bytearray(np.full(len(data) // 4, np.nan, np.float32).tobytes()) + data[len(data) // 4 * 4 :]
    new = bytes(data)
    if packed:
        new = bytes(zstd.compress(new, 1))
        if generator.random() < 0.2:
            new = bytes(zstd.compress(bytes(generator.choice((10**3, 10**8))), 1))  # far too small, or a zip bomb
    files[name] = new + int(google_crc32c.value(new)).to_bytes(4, "little")
    return name


def _table(generator: random.Random, files: Files) -> str:
    """Mutate a table of documents or of removed documents."""
    tables = [path for path in files if path.endswith("documents.parquet") or path.startswith("removed/")]
    name = generator.choice(sorted(tables))
    table = pq.read_table(io.BytesIO(files[name]))
    column = generator.choice([field.name for field in table.schema if pa.types.is_int64(field.type)])
    at = table.schema.get_field_index(column)
    numbers = table.column(column).to_pylist()
    if generator.random() < 0.8:
        for _ in range(generator.choice((1, 3))):
            numbers[generator.randrange(len(numbers))] = generator.choice(
                (-1, 0, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), None)
            )
        table = table.set_column(at, table.schema.field(at), pa.array(numbers, pa.int64()))
    elif generator.random() < 0.5:
        table = table.set_column(
            0, table.schema.field(0), pa.array([generator.choice(_NAMES)] * len(table), pa.string())
        )
    else:
        table = generator.choice((table.slice(0, 0), table.drop_columns([column]), pa.concat_tables([table] * 500)))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    if name.startswith("removed/"):  # named by its digest, which is in the manifest
        del files[name]
        digest = hashlib.sha256(data).hexdigest()[:16]
        manifest = json.loads(files["knnstore.json"]) | {"removed": digest}
        del manifest[CHECKSUM_FIELD]
        name, files["knnstore.json"] = f"removed/{digest}.parquet", _sealed(manifest)
    files[name] = data
    return name


def _links(generator: random.Random, files: Files) -> str:
    return generator.choice(sorted(files))


_KINDS: dict[str, Callable[[random.Random, Files], str]] = {
    "bytes": _bytes,
    "json": _json,
    "words": _words,
    "table": _table,
    "links": _links,
}


def _plant(generator: random.Random, path: Path) -> None:
    """Replace a file by a link, a FIFO, a socket or a folder."""
    path.unlink()
    how = generator.randrange(5)
    if how == 0:
        path.symlink_to("/etc/passwd")
    elif how == 1:
        path.symlink_to(path.parent)
    elif how == 2:
        os.mkfifo(path)
    elif how == 3:
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as end:
            before = Path.cwd()
            os.chdir(path.parent)  # the path of a socket is limited to about a hundred characters
            end.bind(path.name)
            os.chdir(before)


def _sealed(value: Any) -> bytes:
    try:
        return seal_json(value)
    except (ValueError, TypeError):
        return json.dumps(value).encode()


def reseal(files: Files, name: str) -> None:
    """Update the records of a file to its current size and checksum."""
    if name not in files:
        return
    data = files[name]
    body = data[:-4] if chunk_number(name) is not None else data
    for record in [path for path in files if "/commits/" in path]:
        try:
            value = json.loads(files[record])
            entries = [file for file in value["files"] if name == f"{record.split('/commits/')[0]}/{file['path']}"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        for file in entries:
            file["bytes"], file["crc32c"] = len(data), google_crc32c.value(body)
        if entries:
            value.pop(CHECKSUM_FIELD, None)
            files[record] = _sealed(value)
