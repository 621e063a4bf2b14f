"""A layer between this process and a store's files: it counts every durable operation, and fails the n-th.

Writes, fsync, rename, link, unlink, mkdir and rmdir below a store's folder pass through it, those of Python, NumPy,
Zarr and (handed a Python file) Parquet alike. At the n-th it kills the process before it, or in the middle of it; or
cuts the power, which leaves behind what a disk may then hold; or raises what a full or a broken disk would.
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

Mode = Literal["kill", "torn", "power", "full", "broken"]
MODES: tuple[Mode, ...] = ("kill", "torn", "power", "full", "broken")
Action = Callable[[], Any]
_WRITES = frozenset("wax+")


class Layer:
    """Fails the ``target``-th operation below ``root`` in the way of ``mode``; a target of 0 never comes."""

    def __init__(self, root: Path, target: int, mode: Mode, seed: int, after: Path) -> None:
        self.root = root.absolute()
        self.count = 0
        self.seen: set[str] = set()
        self._target = target
        self._mode = mode
        self._power = PowerModel(self.root, seed, after) if mode == "power" else None
        self._full = False
        self._lock = RLock()  # files are flushed by several threads at a time

    def concerns(self, path: Path) -> bool:
        """Whether a path lies in the store, its lock aside."""
        return (path == self.root or self.root in path.parents) and path.name != ".lock"

    def operation(
        self, kind: str, path: Path, perform: Callable[[], Any], half: Callable[[], Any] | None = None
    ) -> Any:
        """Count one operation; perform it, unless it is the one to fail."""
        with self._lock:
            return self._operation(kind, path, perform, half)

    def _operation(self, kind: str, path: Path, perform: Action, half: Action | None) -> Any:
        self.count += 1
        if self.count == self._target:
            if self._mode == "torn":
                (half or perform)()
            if self._power is not None:
                self._power.leave_behind()
            if self._mode in ("kill", "torn", "power"):
                os.kill(os.getpid(), signal.SIGKILL)
            self._full = self._mode == "full"
            if self._mode == "broken":
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        if self._full and kind in ("write", "mkdir", "rename", "create"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        result = perform()
        self.seen.add(path.relative_to(self.root.parent).as_posix())
        if self._power is not None:
            self._power.note(kind, path)
        return result

    @contextmanager
    def installed(self) -> Iterator["Layer"]:
        """Put the layer in place."""
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
    """A file that is open for writing: each write passes through the layer."""

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
    """What a disk may hold after the power failed: what was synced, and of the rest any part.

    The bytes of a file are sure once it was synced; a name, or its absence, once its folder was. What isn't sure is
    drawn: a name is as it was or as it is; bytes are there, or zeros, or cut short, or none at all.
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
        """Follow one operation that was performed."""
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
        """Write the folder as the disk may hold it to ``after``."""
        self._after.mkdir()
        if self._root.is_dir() and (self._rooted or self._generator.random() < 0.5):
            self._leave(self._root, self._after / self._root.name)

    def _leave(self, folder: Path, to: Path) -> None:
        os.mkdir(to)  # noqa: PTH102 - both names pass through the layer, which doesn't concern itself with this place
        before, now = self._names.get(folder, {}), self._listing(folder) if folder.is_dir() else {}
        for name in sorted(before.keys() | now.keys()):
            known = [names[name] for names in (before, now) if name in names]
            sure = len(known) == 2 and known[0] == known[1]
            chosen = now if sure else self._generator.choice((before, before, now))
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
