"""Files in object storage, by the requests of its service."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from knnstore.files.guard import check_write
from knnstore.files.objects.cache import the_cache
from knnstore.files.objects.service import client_of, count, described, load_obstore, request
from knnstore.files.protocol import Description, Mapped, Version
from knnstore.files.remote import RemoteFiles
from knnstore.files.remotepath import RemotePath, remote
from knnstore.files.sums import sums_of, sums_of_file

_DELETED_AT_ONCE = 1000
_PART_BYTES = 2**26  # up to this size one request writes an object, which leaves nothing behind if interrupted
_MAPPED_SHARE = 16  # of the cache, for the maps of one array


class ObjectFiles(RemoteFiles):
    """The verbs for ``s3://``, ``gs://`` and ``az://``. Whole objects and mapped blocks are cached on the disk."""

    def get(self, path: RemotePath, begin: int = 0, end: int | None = None, version: Version | None = None) -> bytes:
        """See RemoteFiles. Whole objects are verified by their sums, if they have any."""
        if end is None and version is None:
            from knnstore.files.objects.whole import read_object  # noqa: PLC0415 - it imports numpy

            return read_object(path)[begin:]
        if begin == end:
            return b""
        options: dict[str, Any] = {} if end is None else {"range": (begin, end)}
        if version is not None and version.e_tag is not None:
            options["if_match"] = version.e_tag
        data = request(
            "read", str(path), lambda: load_obstore().get(client_of(path), path.key, options=options).bytes()
        )
        count(gets=1, read=len(data))
        return bytes(data)

    def read_version(self, path: Path) -> tuple[Version, bytes]:
        """See Files."""

        def get() -> tuple[Version, bytes]:
            answer = load_obstore().get(client_of(path), remote(path).key)
            return described(answer).version, bytes(answer.bytes())

        version, data = request("read", str(path), get)
        count(gets=1, read=len(data))
        return version, data

    def describe(self, path: Path) -> Description:
        """See Files."""
        count(heads=1)
        head = {"head": True}
        get = load_obstore().get
        return described(request("look at", str(path), lambda: get(client_of(path), remote(path).key, options=head)))

    def put(self, path: RemotePath, data: bytes, only: Version | bool | None = False) -> Version:
        """See RemoteFiles."""
        mode = "overwrite" if only is False else "create" if only is None else only.condition  # type: ignore[union-attr]
        count(puts=1, written=len(data))
        put = partial(load_obstore().put, attributes=sums_of(data).attributes(), mode=mode, use_multipart=False)
        done = request("write", str(path), lambda: put(client_of(path), path.key, data))
        return Version(done["e_tag"], done["version"])

    def put_file(self, path: RemotePath, file: IO[bytes]) -> None:
        """See RemoteFiles."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        sums = sums_of_file(file.read, size).attributes()
        count(puts=1, written=size)

        def put() -> None:
            file.seek(0)
            multipart = size > _PART_BYTES
            load_obstore().put(client_of(path), path.key, file, attributes=sums, use_multipart=multipart)

        request("write", str(path), put)

    def objects(self, path: RemotePath) -> Iterator[tuple[RemotePath, int]]:
        """See RemoteFiles."""
        prefix = path.key or None
        objects = request("list", str(path), lambda: load_obstore().list(client_of(path), prefix).collect())
        count(lists=1 + len(objects) // 1000)
        begin = len(path.key) + 1 if path.key else 0
        yield from ((path / entry["path"][begin:], int(entry["size"])) for entry in objects)

    def has_objects(self, path: RemotePath) -> bool:
        """See RemoteFiles."""
        count(lists=1)
        objects = partial(load_obstore().list, chunk_size=1)
        return bool(request("list", str(path), lambda: next(objects(client_of(path), path.key or None), None)))

    def names(self, path: RemotePath) -> list[str]:
        """See RemoteFiles."""
        listed = self._listed(path)
        return _last_names([*listed["common_prefixes"], *(entry["path"] for entry in listed["objects"])])

    def folders(self, path: Path) -> list[str]:
        """See Files."""
        return _last_names(self._listed(remote(path))["common_prefixes"])

    def _listed(self, path: RemotePath) -> Any:
        count(lists=1)
        list_folder = load_obstore().list_with_delimiter
        return request("list", str(path), lambda: list_folder(client_of(path), path.key or None))

    def delete(self, paths: Sequence[RemotePath]) -> None:
        """See RemoteFiles."""
        delete = load_obstore().delete
        for first in range(0, len(paths), _DELETED_AT_ONCE):
            keys = [path.key for path in paths[first : first + _DELETED_AT_ONCE]]
            count(deletes=1)
            client = client_of(paths[0])
            request("remove", str(paths[0]), partial(delete, client, keys if len(keys) > 1 else keys[0]))

    def copy(self, source: Path, target: Path) -> None:
        """See Files: on the service's side, with the sums."""
        check_write(target)
        count(puts=1)
        copy = partial(load_obstore().copy, overwrite=True)
        request("copy", str(source), lambda: copy(client_of(source), remote(source).key, remote(target).key))

    def map(self, path: Path, size: int) -> Mapped:
        """See Files: a file of the cache, whose blocks are fetched and verified before they are first touched."""
        from knnstore.files.objects.blocks import CachedObject  # noqa: PLC0415 - it imports numpy

        return CachedObject(remote(path), size)

    def most_maps(self, size: int) -> int | None:
        """See Files: what a process has mapped stays in the cache."""
        return max(2, the_cache().limit // _MAPPED_SHARE // size)


def _last_names(keys: Iterable[str]) -> list[str]:
    return [key.rstrip("/").rpartition("/")[2] for key in sorted(map(str, keys))]
