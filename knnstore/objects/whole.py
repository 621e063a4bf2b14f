"""Objects that are read whole: kept in the cache, and only asked whether they changed."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from knnstore.errors import CorruptStoreError
from knnstore.objects.cache import Cache, the_cache
from knnstore.objects.path import Described, ObjectPath, Version, described
from knnstore.objects.service import UnchangedError, count, load_obstore, request
from knnstore.objects.sums import Sums, block_bytes

_SMALL = 2**16  # objects below this are asked for again rather than kept
_afresh: list[bool] = []


@contextmanager
def read_afresh() -> Iterator[None]:
    """Within, whole objects come from the service as they are: for who looks for damage."""
    _afresh.append(True)
    try:
        yield
    finally:
        _afresh.pop()


def read_object(path: ObjectPath) -> bytes:
    """A whole object, from the cache if the service says that it is the one that is there.

    Raises FileNotFoundError if it isn't there, CorruptStoreError if what arrives isn't what was written.
    """
    cache = the_cache()
    known = None if _afresh else _known(cache, path)
    options = {"if_none_match": known[0].e_tag} if known else {}

    def get() -> tuple[Described, bytes]:
        count(gets=1)
        answer = load_obstore().get(path.client, path.key, options=options)
        return described(answer), bytes(answer.bytes())

    try:
        found, data = request("read", str(path), get)
    except UnchangedError:
        assert known is not None
        return known[1]
    count(read=len(data))
    if found.sums is None or _afresh:
        return data  # there is nothing to verify a copy by, or the caller does
    if not found.sums.fits(data):
        raise CorruptStoreError(f"{path} isn't what was written: see what else is, with 'knnstore verify'")
    if len(data) >= _SMALL and found.version.e_tag:
        _keep(cache, path, found, data)
    return data


def _known(cache: Cache, path: ObjectPath) -> tuple[Version, bytes] | None:
    """The version of a whole object that is here, and its bytes, verified."""
    try:
        told = json.loads(cache.note(path).read_text())
        version, blocks = Version(told["e_tag"], told["version"]), np.array(told["blocks"], np.uint32)
        file = cache.file(path, version)
        data = file.read_bytes()
        sums = Sums(len(data), 0, 0, blocks)
        if len(blocks) == -(-len(data) // block_bytes(len(data))) and sums.fits(data):
            os.utime(file)
            return version, data
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        pass
    return None


def _keep(cache: Cache, path: ObjectPath, found: Described, data: bytes) -> None:
    assert found.sums is not None
    cache.make_room(len(data))
    with suppress(OSError):  # a disk that is full doesn't keep anyone from reading
        version = found.version
        _put_aside(cache.file(path, version), data)
        told = {"e_tag": version.e_tag, "version": version.version, "blocks": found.sums.blocks.tolist()}
        _put_aside(cache.note(path), json.dumps(told).encode())


def _put_aside(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix="new-", delete=False) as aside:
        try:
            aside.write(data)
            aside.flush()
            Path(aside.name).replace(file)
        except BaseException:
            Path(aside.name).unlink(missing_ok=True)
            raise
