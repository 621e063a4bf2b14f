"""Storage in the memory of this process, behind ``memory://`` URLs: all that another kind of storage has to bring."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from knnstore.files import ConditionError, Description, RemoteFiles, RemotePath, Version, register

_numbers = count(1)


@dataclass(frozen=True)
class Item:
    data: bytes
    version: Version
    modified: float


class MemoryFiles(RemoteFiles):
    def __init__(self) -> None:
        self.items: dict[str, Item] = {}

    def _item(self, path: Path) -> Item:
        try:
            return self.items[str(path)]
        except KeyError:
            raise FileNotFoundError(f"{path} doesn't exist") from None

    def get(self, path: RemotePath, begin: int = 0, end: int | None = None, version: Version | None = None) -> bytes:
        item = self._item(path)
        if version not in (None, item.version):
            raise ConditionError(str(path))
        return item.data[begin:end]

    def describe(self, path: Path) -> Description:
        item = self._item(path)
        return Description(len(item.data), item.modified, item.version)

    def put(self, path: RemotePath, data: bytes, only: Version | bool | None = False) -> Version:
        present = self.items.get(str(path))
        if only is not False and only != (present.version if present else None):
            raise ConditionError(str(path))
        version = Version(str(next(_numbers)), None)
        self.items[str(path)] = Item(bytes(data), version, time.time())
        return version

    def objects(self, path: RemotePath) -> Iterator[tuple[RemotePath, int]]:
        below = f"{path}/"
        names = sorted(name for name in self.items if name.startswith(below))
        yield from ((path / name.removeprefix(below), len(self.items[name].data)) for name in names)

    def delete(self, paths: Sequence[RemotePath]) -> None:
        for path in paths:
            self._item(path)
            del self.items[str(path)]


register("memory", MemoryFiles())
