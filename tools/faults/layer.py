"""A layer between this process and a store's files that counts durable operations and makes the n-th one fail.

Writes, fsync, rename, link, unlink, mkdir and rmdir below the folder of a store pass through it, whether by Python,
NumPy, Zarr or (given a Python file) Parquet. At the n-th operation it kills the process before or in the middle of it;
or simulates a power cut, which leaves a possible state of the disk; or raises the error of a disk that is full, over
quota, read-only, without write permission, or broken.
"""

import builtins
import errno
import io
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import pyarrow.parquet as pq

Mode = Literal["kill", "torn", "power", "full", "quota", "read-only", "denied", "broken"]
DEATHS: tuple[Mode, ...] = ("kill", "torn", "power")
FAILURES: dict[Mode, int] = {
    "full": errno.ENOSPC,
    "quota": errno.EDQUOT,
    "read-only": errno.EROFS,
    "denied": errno.EACCES,
    "broken": errno.EIO,  # fails once; the others persist
}
MODES: tuple[Mode, ...] = (*DEATHS, *FAILURES)
_NEED_ROOM = ("write", "mkdir", "rename", "create")
Action = Callable[[], Any]
_WRITES = frozenset("wax+")


class Layer:
    """Makes operation number ``target`` below ``root`` fail by ``mode``; 0 for no failure."""

    def __init__(self, root: Path, target: int, mode: Mode, seed: int, after: Path) -> None:
        self.root = root.absolute()
        self.count = 0
        self.seen: set[str] = set()
        self._target = target
        self._mode = mode
        self._power = PowerModel(self.root, seed, after) if mode == "power" else None
        self._failing = False
        self._lock = RLock()  # several threads flush files at a time

    def concerns(self, path: Path) -> bool:
        """Return whether a path is in the store, except its lock."""
        return (path == self.root or self.root in path.parents) and path.name != ".lock"

    def operation(
        self, kind: str, path: Path, perform: Callable[[], Any], half: Callable[[], Any] | None = None
    ) -> Any:
        """Count an operation and perform it, unless it has to fail."""
        with self._lock:
            return self._operation(kind, path, perform, half)

    def _operation(self, kind: str, path: Path, perform: Action, half: Action | None) -> Any:
        self.count += 1
        if self.count == self._target:
            if self._mode == "torn":
                (half or perform)()
            if self._power is not None:
                self._power.leave_behind()
            if self._mode in DEATHS:
                os.kill(os.getpid(), signal.SIGKILL)
            self._failing = True
        if self._failing and self._fails(kind):
            self._failing = self._mode != "broken"
            number = FAILURES[self._mode]
            raise OSError(number, os.strerror(number), str(path))
        result = perform()
        self.seen.add(path.relative_to(self.root.parent).as_posix())
        if self._power is not None:
            self._power.note(kind, path)
        return result

    def _fails(self, kind: str) -> bool:
        """Return whether this kind of operation fails on such a disk."""
        if self._mode in ("full", "quota"):
            return kind in _NEED_ROOM
        return kind != "fsync" or self._mode == "broken"

    @contextmanager
    def installed(self) -> Iterator["Layer"]:
        """Install the layer within the context."""
        replaced: list[tuple[Any, str, Any]] = []

        def put(owner: Any, name: str, made: Callable[[Any], Any]) -> None:
            before = getattr(owner, name)
            replaced.append((owner, name, before))
            setattr(owner, name, made(before))

        for owner in (builtins, io):
            put(owner, "open", self._opening)
        for name in ("unlink", "remove", "rmdir", "mkdir"):
            put(os, name, partial(self._on_path, name))
        for name in ("replace", "rename", "link"):
            put(os, name, partial(self._on_two, name))
        put(os, "fsync", self._syncing)
        put(pq.ParquetWriter, "__init__", self._parquet)
        put(pq.ParquetWriter, "close", _closing)
        try:
            yield self
        finally:
            for owner, name, before in reversed(replaced):
                setattr(owner, name, before)

    def _opening(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            path = None if isinstance(file, int) else Path(os.fsdecode(file)).absolute()
            if path is None or not _WRITES & set(mode) or not self.concerns(path):
                return before(file, mode, *arguments, **options)
            made = self.operation("create", path, lambda: before(file, mode, *arguments, **options))
            return _Writer(made, path, self)

        return opened

    def _on_path(self, name: str, before: Callable[..., Any]) -> Callable[..., Any]:
        kind = {"unlink": "unlink", "remove": "unlink"}.get(name, name)

        def done(path: Any, *arguments: Any, dir_fd: int | None = None, **options: Any) -> Any:
            place = _place(path, dir_fd)
            call: Action = lambda: before(path, *arguments, dir_fd=dir_fd, **options)  # noqa: E731
            return self.operation(kind, place, call) if self.concerns(place) else call()

        return done

    def _on_two(self, name: str, before: Callable[..., Any]) -> Callable[..., Any]:
        kind = "link" if name == "link" else "rename"

        def done(source: Any, target: Any, **options: Any) -> Any:
            place = _place(target, options.get("dst_dir_fd"))
            call: Action = lambda: before(source, target, **options)  # noqa: E731
            if not self.concerns(place):
                return call()
            if self._power is not None:
                self._power.origin = _place(source, options.get("src_dir_fd"))
            return self.operation(kind, place, call)

        return done

    def _syncing(self, before: Callable[[int], None]) -> Callable[[int], None]:
        def synced(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            place = Path(f"/proc/self/fd/{number}").readlink()
            if self.concerns(place) or place == self.root.parent:
                self.operation("fsync", place, lambda: before(number))
            else:
                before(number)

        return synced

    def _parquet(self, before: Callable[..., None]) -> Callable[..., None]:
        def made(writer: Any, where: Any, *arguments: Any, **options: Any) -> None:
            if isinstance(where, str | Path) and self.concerns(Path(where).absolute()):
                where = writer._own_file = Path(where).open("wb")  # noqa: SIM115 - closed with the writer
            before(writer, where, *arguments, **options)

        return made


def _closing(before: Callable[[Any], None]) -> Callable[[Any], None]:
    def closed(writer: Any) -> None:
        before(writer)
        if hasattr(writer, "_own_file"):
            writer._own_file.close()

    return closed


class _Writer:
    """A file opened for writing: each write passes through the layer."""

    def __init__(self, file: Any, path: Path, layer: Layer) -> None:
        self._file, self._path, self._layer = file, path, layer

    def write(self, data: Any) -> Any:
        view = memoryview(data).cast("B") if not isinstance(data, str) else data

        def half() -> None:
            self._file.write(view[: len(view) // 2])
            self._file.flush()

        return self._layer.operation("write", self._path, lambda: self._file.write(data), half)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class PowerModel:
    """Possible content of a disk after a power failure: everything that was synced, and any part of the rest.

    The bytes of a file are certain once it was synced; a name, or its absence, once its folder was. The rest is random:
    a name is the old or the new one; bytes are complete, zeros, truncated or missing.
    """

    def __init__(self, root: Path, seed: int, after: Path) -> None:
        self.origin: Path | None = None
        self._root, self._after = root, after
        self._generator = random.Random(seed)
        self._ids: dict[Path, int] = {}
        self._synced: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int | None]] = {}
        self._next = 0
        for folder in (path for path in [root, *root.rglob("*")] if path.is_dir()):
            for path in folder.iterdir():
                if path.is_file():
                    self._synced[self._new(path)] = path.read_bytes()
        for folder in (path for path in [root, *root.rglob("*")] if path.is_dir()):
            self._names[folder] = self._listing(folder)
        self._rooted = root.is_dir()

    def note(self, kind: str, path: Path) -> None:
        """Record an operation that was performed."""
        if kind == "create" and path not in self._ids:
            self._new(path)
        elif kind == "unlink":
            self._ids.pop(path, None)
        elif kind in ("rename", "link") and self.origin is not None:
            known = self._ids.get(self.origin)
            self._ids[path] = self._new(path) if known is None else known
            if kind == "rename":
                self._ids.pop(self.origin, None)
        elif kind == "mkdir":
            self._names[path] = {}
        elif kind == "fsync" and path == self._root.parent:
            self._rooted = True
        elif kind == "fsync" and path.is_dir():
            self._names[path] = self._listing(path)
        elif kind == "fsync":
            self._synced[self._ids.get(path) or self._new(path)] = path.read_bytes()

    def leave_behind(self) -> None:
        """Write a possible state of the folder to ``after``."""
        self._after.mkdir()
        if self._root.is_dir() and (self._rooted or self._generator.random() < 0.5):
            self._leave(self._root, self._after / self._root.name)

    def _leave(self, folder: Path, to: Path) -> None:
        os.mkdir(to)  # noqa: PTH102 - both names pass through the layer, which ignores this place
        before, now = self._names.get(folder, {}), self._listing(folder) if folder.is_dir() else {}
        for name in sorted(before.keys() | now.keys()):
            known = [names[name] for names in (before, now) if name in names]
            certain = len(known) == 2 and known[0] == known[1]
            chosen = now if certain else self._generator.choice((before, before, now))
            if name not in chosen:
                continue
            identity = chosen[name]
            if identity is None:
                self._leave(folder / name, to / name)
            else:
                (to / name).write_bytes(self._bytes(identity))

    def _bytes(self, identity: int) -> bytes:
        synced = self._synced.get(identity, b"")
        path = next((path for path, known in self._ids.items() if known == identity), None)
        live = path.read_bytes() if path is not None and path.is_file() else synced
        if identity in self._synced and synced == live:
            return live
        return self._generator.choice((synced, bytes(len(live)), live[: len(live) // 2], live))

    def _listing(self, folder: Path) -> dict[str, int | None]:
        return {
            path.name: None if path.is_dir() else self._ids.get(path) or self._new(path)
            for path in folder.iterdir()
            if path.name != ".lock"
        }

    def _new(self, path: Path) -> int:
        self._next += 1
        self._ids[path] = self._next
        return self._next


def _place(path: Any, folder: int | None) -> Path:
    name = os.fsdecode(path)
    return Path(f"/proc/self/fd/{folder}").readlink() / name if folder is not None else Path(name).absolute()
