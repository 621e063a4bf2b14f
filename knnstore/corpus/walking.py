"""Find the files of an argument: a file, a folder with everything below it, or a glob pattern."""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase, translate
from glob import has_magic
from pathlib import Path
from typing import NamedTuple

from knnstore.corpus.listing import Reason
from knnstore.corpus.opening import naming_errors
from knnstore.corpus.selection import Selection
from knnstore.errors import CorpusError

STORE_SUFFIX = ".knnstore"


class Bounds:
    """The folders of a corpus, with links resolved."""

    def __init__(self, folders: Iterable[str]) -> None:
        self._roots = {os.path.realpath(folder) for folder in folders}
        self._last: tuple[str, bool] | None = None  # a folder, and whether it is inside

    def leaves(self, path: str) -> bool:
        """Return whether links lead from the path to a place outside all folders."""
        if Path(path).is_symlink():
            return not self._contains(path)
        parent = path[: path.rfind("/") + 1]
        if self._last is None or self._last[0] != parent:
            self._last = parent, self._contains(parent)
        return not self._last[1]

    def _contains(self, path: str) -> bool:
        place = Path(os.path.realpath(path))
        return any(str(above) in self._roots for above in (place, *place.parents))


class Step(NamedTuple):
    """A file found by a walk; ``reason`` is set for folders that aren't entered and links that aren't followed."""

    path: str
    reason: Reason = ""
    outside: bool = False


class Argument:
    """An argument that names files. Raises CorpusError if it matches nothing."""

    def __init__(self, argument: str) -> None:
        self.text = argument
        self._exists = exists(argument)
        if not self._exists and not has_magic(argument):
            raise CorpusError(f"no such file or folder: {argument!r}; check the path and the current folder")
        is_folder = self._exists and Path(argument).is_dir()
        if is_folder and argument.rstrip("/").endswith(STORE_SUFFIX):
            raise CorpusError(f"{argument!r} is a store, not text: give the text it was made from")
        self.is_file = self._exists and not is_folder
        self.folder = f"{argument.rstrip('/')}/" if is_folder else _literal_folder(argument)
        suffix = None if self._exists else re.search(r"\.[^./*?\[\]]+\Z", argument)
        self._suffix = suffix[0] if suffix else None

    def names_type(self, path: str) -> bool:
        """Return whether the argument is a pattern that ends in the file's suffix, such as ``src/*.py``."""
        return self._suffix is not None and path.endswith(self._suffix)

    def inside(self, path: str) -> str:
        """Return the path relative to the argument's folder, as patterns are matched."""
        return path.removeprefix(self.folder)

    def covers(self, path: str) -> bool:
        """Return whether the argument covers the path, even if the file doesn't exist."""
        if self._exists:
            return path == self.text or (not self.is_file and path.startswith(self.folder))
        return re.match(translate(self.text), path) is not None

    def steps(self, selection: Selection, bounds: Bounds) -> Iterator[Step]:
        """Yield every file of any type, in no particular order, some several times.

        Patterns such as ``**/*`` match a folder as well as its contents. Excluded folders, and links out of the corpus
        that aren't followed, are not entered.
        """
        if self.is_file:
            yield Step(self.text)
            return
        closed: list[Step] = []

        def enter(folder: str) -> bool:
            if selection.excludes(f"{self.inside(folder)}/"):
                closed.append(Step(folder, "choice"))
            elif not selection.follow_links and Path(folder).is_symlink() and bounds.leaves(folder):
                closed.append(Step(folder, "link"))
            else:
                return True
            return False

        tops = [self.text] if self._exists else _expand(*_split(self.text), enter)
        nothing = True
        for top in tops:
            nothing = False
            files = _files_below(top, enter) if Path(top).is_dir() else [top]
            yield from (self._file(path, selection, bounds) for path in files)
        yield from closed
        if nothing and not closed:
            raise CorpusError(f"the pattern {self.text!r} matches nothing; check it and the current folder")

    def _file(self, path: str, selection: Selection, bounds: Bounds) -> Step:
        outside = bounds.leaves(path)
        return Step(path, "link" if outside and not selection.follow_links else "", outside)


def exists(path: str) -> bool:
    """Return whether the path exists, even as a broken link."""
    try:
        return os.path.lexists(path)  # a broken link exists; reading it reports the error
    except ValueError:  # a NUL in the name
        return False


def identity_of(info: os.stat_result) -> bytes:
    """Return the identity of a file: device and inode."""
    return (info.st_dev << 64 | info.st_ino).to_bytes(16)


def _literal_folder(pattern: str) -> str:
    """Return the folders before the first part with a wildcard, ``""`` or ending in ``/``."""
    parts = pattern.split("/")
    first = next((number for number, part in enumerate(parts) if has_magic(part)), len(parts) - 1)
    return "".join(f"{part}/" for part in parts[:first])


def _split(pattern: str) -> tuple[str, list[str]]:
    return "/" if pattern.startswith("/") else "", [part for part in pattern.split("/") if part]


def _expand(prefix: str, parts: list[str], enter: Callable[[str], bool]) -> Iterator[str]:
    """Yield the matches of a pattern's parts below the folder ``prefix``, which is "" or ends in "/".

    glob.glob isn't used because its ``**`` follows loops of links and ignores unreadable folders. ``enter`` tells
    whether a folder that matches a wildcard may be entered.
    """
    part, rest = parts[0], parts[1:]
    if part == "**" and rest:
        for below, folder in _walk(prefix, enter):
            if folder:
                yield from _expand(below, rest, enter)
        return
    matches: Iterable[str]
    if part == "**":
        matches = [prefix or "."]  # a folder means everything below it
    elif has_magic(part):
        matches = (
            prefix + name
            for name, folder in _entries(prefix)
            if fnmatchcase(name, part) and (enter(prefix + name) if folder else not rest)
        )
    else:
        matches = [prefix + part] if exists(prefix + part) else []
    for match in matches:
        yield from _expand(f"{match}/", rest, enter) if rest else [match]


def _files_below(folder: str, enter: Callable[[str], bool]) -> Iterator[str]:
    return (path for path, is_folder in _walk(folder.rstrip("/") + "/", enter) if not is_folder)


def _walk(top: str, enter: Callable[[str], bool]) -> Iterator[tuple[str, bool]]:
    """Yield every folder from ``top`` down, as "" or a path ending in "/", and its files, with whether it is a folder.

    A folder reached twice through links is walked once, under the first name.
    """
    seen: set[bytes] = set()
    waiting = [top]
    while waiting:
        prefix = waiting.pop()
        with naming_errors(prefix):
            identity = identity_of(Path(prefix).stat())
        if identity in seen:
            continue
        seen.add(identity)
        yield prefix, True
        folders = []
        for name, folder in _entries(prefix):
            if not folder:
                yield prefix + name, False
            elif enter(prefix + name):
                folders.append(name)
        waiting.extend(f"{prefix}{name}/" for name in sorted(folders, reverse=True))


def _entries(prefix: str) -> Iterator[tuple[str, bool]]:
    """Yield the names in a folder, in the system's order and except hidden ones and stores, and if each is a folder."""
    with naming_errors(prefix or "."), os.scandir(prefix or ".") as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                folder = _is_folder(entry)
                if not (folder and entry.name.endswith(STORE_SUFFIX)):
                    yield entry.name, folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself isn't a folder
            return False
        raise
