"""Folders, files and glob patterns -> the files of a corpus, in an order that never varies."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import Literal

from knnstore.corpus.opening import naming_errors
from knnstore.errors import CorpusError

Kind = Literal["text", "jsonl", "parquet", "tsv", "aligned"]

_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
}
PAIR_KINDS: dict[str, Kind] = {
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
    ".tsv.zst": "tsv",
    **{suffix: kind for suffix, kind in _KINDS.items() if kind != "text"},
}
_STORE_SUFFIX = ".knnstore"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the corpus.

    ``path`` is the argument as the user gave it, joined by ``/`` with the path inside it; ``bytes`` is its size
    on disk; ``folder`` is where a relative path starts, for a reader that works elsewhere. ``beside``: of the target
    side of two parallel files the source side, of ``beside_bytes``.
    """

    path: str
    kind: Kind
    bytes: int
    folder: str = ""
    beside: str = ""
    beside_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a corpus in reading order, and how many files of other kinds its folders had."""

    sources: tuple[Source, ...]
    ignored: int


def find_sources(corpus: Sequence[str], kinds: Mapping[str, Kind] = _KINDS) -> Sources:
    """The files that the arguments name: each a file, a folder (with all below it) or a glob pattern (with ``**``).

    Arguments keep their order; within one the files are sorted by the bytes of their paths. A file met twice, under
    whatever name, is taken once. Hidden entries and ``*.knnstore`` folders are passed over; other kinds of files, and
    whatever isn't a regular file, are counted in ``ignored``.

    ``kinds``: what a file holds, by the end of its name.

    Raises CorpusError where an argument matches nothing, names a file that isn't text, or all together have no text;
    ResourceError where a folder or file can't be looked at.
    """
    found: list[Source] = []
    seen: set[int] = set()
    ignored = 0
    for argument in corpus:
        for path in _paths(argument):
            source, identity = _examine(path, kinds)
            if source is None:
                if path == argument:
                    raise CorpusError(f"{path!r} is not a file of text that can be read: give {' '.join(kinds)}")
                ignored += 1
            elif identity not in seen:
                seen.add(identity)
                found.append(source)
    if not found:
        given = ", ".join(repr(argument) for argument in corpus) or "no argument at all"
        raise CorpusError(f"no text found in {given}: looked for {' '.join(kinds)}, ignored {ignored} other files")
    return Sources(tuple(found), ignored)


def find_pairs(corpus: Sequence[str], source: Sequence[str], target: Sequence[str]) -> Sources:
    """The files of a corpus of pairs: ``corpus`` as for ``find_sources``, and parallel files, n-th beside n-th.

    Raises CorpusError for files that aren't there, or that have no other side.
    """
    if len(source) != len(target):
        raise CorpusError(
            f"{len(source)} --source and {len(target)} --target files: give each source file its target file"
        )
    found = find_sources(corpus, PAIR_KINDS) if corpus else Sources((), 0)
    sides = [[_aligned(path) for path in paths] for paths in (source, target)]
    pairs = (replace(theirs, beside=ours.path, beside_bytes=ours.bytes) for ours, theirs in zip(*sides, strict=True))
    return Sources((*found.sources, *pairs), found.ignored)


def _aligned(path: str) -> Source:
    if not _exists(path) or Path(path).is_dir():
        raise CorpusError(f"no such file: {path!r}; give --source and --target files that have a text a line")
    source, _ = _examine(path, {"": "aligned"})
    if source is None:
        raise CorpusError(f"{path!r} is not a file of text that can be read")
    return source


def fingerprint(sources: Sequence[Source]) -> str:
    """SHA-256, as 64 hex digits, of every path, kind and size in order: equal while the corpus lists the same."""
    digest = hashlib.sha256()
    for source in sources:
        beside = [source.beside, source.beside_bytes] if source.beside else []
        digest.update(json.dumps([source.path, source.kind, source.bytes, *beside]).encode() + b"\n")
    return digest.hexdigest()


def _examine(path: str, kinds: Mapping[str, Kind]) -> tuple[Source | None, int]:
    """The source at ``path``, or None for other kinds and for what isn't a regular file; and the file's identity."""
    kind = next((kind for suffix, kind in kinds.items() if path.lower().endswith(suffix)), None)
    if kind is None:
        return None, 0
    with naming_errors(path):
        info = Path(path).stat()
    if not stat.S_ISREG(info.st_mode):  # opening a FIFO would wait for ever
        return None, 0
    try:
        path.encode()
    except UnicodeEncodeError:
        raise CorpusError(f"the file name {path!r} is not UTF-8 and can't be recorded: rename the file") from None
    return Source(path, kind, info.st_size), _identity(info)


def _identity(info: os.stat_result) -> int:
    return info.st_dev << 64 | info.st_ino


def _paths(argument: str) -> list[str]:
    """Every file, of whatever kind, that the argument stands for; sorted, each once."""
    named = _exists(argument)
    if not named and not has_magic(argument):
        raise CorpusError(f"no such file or folder: {argument!r}; check the path, and the folder it is relative to")
    tops = [argument] if named else list(_expand(*_split(argument)))
    if not tops:
        raise CorpusError(f"the pattern {argument!r} matches nothing; check it, and the folder it is relative to")
    if named and argument.rstrip("/").endswith(_STORE_SUFFIX) and Path(argument).is_dir():
        raise CorpusError(f"{argument!r} is a datastore, not text: give the text it was made from")
    # A set, since patterns such as **/* match a folder and, again, what is in it.
    return sorted({path for top in tops for path in (_files_below(top) if Path(top).is_dir() else [top])})


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)  # a link to nothing is there; what is wrong with it is said later
    except ValueError:  # a NUL in the name
        return False


def _split(pattern: str) -> tuple[str, list[str]]:
    return "/" if pattern.startswith("/") else "", [part for part in pattern.split("/") if part]


def _expand(prefix: str, parts: list[str]) -> Iterator[str]:
    """What matches the parts of a pattern below the folder ``prefix``, which is "" or ends in "/".

    Not glob.glob: its ``**`` follows loops of links, and it passes over folders that can't be read.
    """
    part, rest = parts[0], parts[1:]
    if part == "**" and not rest:
        matches = [prefix or "."]  # a folder stands for everything below it
    elif part == "**":
        for below, _ in _walk(prefix):
            yield from _expand(below, rest)
        return
    elif has_magic(part):
        folders, files = _listing(prefix)
        matches = [prefix + name for name in (folders if rest else folders + files) if fnmatchcase(name, part)]
    else:
        matches = [prefix + part] if _exists(prefix + part) else []
    for match in matches:
        yield from _expand(f"{match}/", rest) if rest else [match]


def _files_below(folder: str) -> Iterator[str]:
    for prefix, names in _walk(folder.rstrip("/") + "/"):
        yield from (prefix + name for name in names)


def _walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder from ``top`` down, as "" or a path that ends in "/", with the names of its files.

    A folder reached twice through links is walked once, by the name that comes first.
    """
    seen: set[int] = set()
    waiting = [top]
    while waiting:
        prefix = waiting.pop()
        with naming_errors(prefix):
            identity = _identity(Path(prefix).stat())
        if identity in seen:
            continue
        seen.add(identity)
        folders, files = _listing(prefix)
        yield prefix, files
        waiting.extend(f"{prefix}{name}/" for name in reversed(folders))


def _listing(prefix: str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the other entries, each sorted; hidden ones and datastores left out."""
    folders: list[str] = []
    files: list[str] = []
    with naming_errors(prefix or "."), os.scandir(prefix or ".") as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                files.append(entry.name)
            elif not entry.name.endswith(_STORE_SUFFIX):
                folders.append(entry.name)
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself is no folder
            return False
        raise
