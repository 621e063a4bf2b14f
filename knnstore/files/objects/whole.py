"""Objects that are read whole: cached, and revalidated with the service on each read."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from knnstore.errors import CorruptStoreError
from knnstore.files.objects.cache import Cache, the_cache
from knnstore.files.objects.service import UnchangedError, client_of, count, described, load_obstore, request
from knnstore.files.protocol import Description, Version
from knnstore.files.remotepath import RemotePath
from knnstore.files.sums import Sums, block_bytes
from knnstore.wording import command

_SMALL = 2**16  # smaller objects are fetched again instead of cached
_afresh: list[bool] = []


@contextmanager
def read_afresh() -> Iterator[None]:
    """Read whole objects from the service within, unverified and uncached, to look for damage."""
    _afresh.append(True)
    try:
        yield
    finally:
        _afresh.pop()


def read_object(path: RemotePath) -> bytes:
    """Return a whole object, from the cache if the service says that it hasn't changed.

    Raises FileNotFoundError if it doesn't exist, and CorruptStoreError if its bytes aren't what was written.
    """
    cache = the_cache()
    known = None if _afresh else _known(cache, path)
    options = {"if_none_match": known[0].e_tag} if known else {}

    def get() -> tuple[Description, bytes]:
        count(gets=1)
        answer = load_obstore().get(client_of(path), path.key, options=options)
        return described(answer), bytes(answer.bytes())

    try:
        description, data = request("read", str(path), get)
    except UnchangedError:
        assert known is not None
        return known[1]
    count(read=len(data))
    if description.sums is None or _afresh:
        return data  # without sums a copy couldn't be verified; in ``read_afresh`` the caller verifies
    if not description.sums.fits(data):
        raise CorruptStoreError(f"{path} isn't what was written: check the store with {command('verify')}")
    if len(data) >= _SMALL and description.version.e_tag:
        _keep(cache, path, description, data)
    return data


def _known(cache: Cache, path: RemotePath) -> tuple[Version, bytes] | None:
    """Return the version and the verified bytes of a whole object in the cache; None if it isn't cached."""
    try:
        note = json.loads(cache.note(path).read_text())
        version, blocks = Version(note["e_tag"], note["version"]), np.array(note["blocks"], np.uint32)
        file = cache.file(path, version)
        data = file.read_bytes()
        sums = Sums(len(data), 0, 0, blocks)
        if len(blocks) == -(-len(data) // block_bytes(len(data))) and sums.fits(data):
            os.utime(file)
            return version, data
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        pass
    return None


def _keep(cache: Cache, path: RemotePath, description: Description, data: bytes) -> None:
    assert description.sums is not None
    cache.make_room(len(data))
    with suppress(OSError):  # a full disk must not prevent reading
        version = description.version
        _put_aside(cache.file(path, version), data)
        note = {"e_tag": version.e_tag, "version": version.version, "blocks": description.sums.blocks.tolist()}
        _put_aside(cache.note(path), json.dumps(note).encode())


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
