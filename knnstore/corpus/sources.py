"""Folders, files and glob patterns -> the files of a corpus."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import chain
from pathlib import Path

from knnstore.corpus.listing import Kind, Listing, Met, Source
from knnstore.corpus.opening import naming_errors
from knnstore.errors import CorpusError

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


def find_sources(corpus: Sequence[str], kinds: Mapping[str, Kind] = _KINDS) -> Listing:
    """The files that the arguments name: each a file, a folder (with all below it) or a glob pattern (with ``**``).

    They are in the order that ``Listing`` says. Hidden entries and ``*.knnstore`` folders are passed over; other kinds
    of files, and whatever isn't a regular file, are counted.

    ``kinds``: what a file holds, by the end of its name.

    Raises CorpusError where an argument matches nothing, names a file that isn't text, or all together have no text;
    ResourceError where a folder or file can't be looked at.
    """
    found = _listed(_meet(number, argument, kinds) for number, argument in enumerate(corpus))
    if not found:
        given = ", ".join(repr(argument) for argument in corpus) or "no argument at all"
        raise CorpusError(
            f"no text found in {given}: looked for {' '.join(kinds)}, ignored {found.ignored} other files"
        )
    return found


def find_pairs(corpus: Sequence[str], source: Sequence[str], target: Sequence[str]) -> Listing:
    """The files of a corpus of pairs: ``corpus`` as for ``find_sources``, and parallel files, n-th beside n-th.

    Raises CorpusError for files that aren't there, or that have no other side.
    """
    if len(source) != len(target):
        raise CorpusError(
            f"{len(source)} --source and {len(target)} --target files: give each source file its target file"
        )
    found = find_sources(corpus, PAIR_KINDS) if corpus else _listed([])
    sides = [[_aligned(path) for path in paths] for paths in (source, target)]
    found.add(replace(theirs, beside=ours.path, beside_bytes=ours.bytes) for ours, theirs in zip(*sides, strict=True))
    return found


def _listed(met: Iterable[Iterable[Met]]) -> Listing:
    return Listing(chain.from_iterable(met), folder=str(Path.cwd()))


def _meet(number: int, argument: str, kinds: Mapping[str, Kind]) -> Iterator[Met]:
    """Every file that the n-th argument leads to, as the folders are walked; some more than once."""
    for path in _paths(argument):
        source, identity = _examine(path, kinds)
        if source is not None:
            yield Met(number, path.encode(), source.kind, source.bytes, identity)
        elif path == argument:
            raise CorpusError(f"{path!r} is not a file of text that can be read: give {' '.join(kinds)}")
        else:
            yield Met(number, os.fsencode(path))


def _aligned(path: str) -> Source:
    if not _exists(path) or Path(path).is_dir():
        raise CorpusError(f"no such file: {path!r}; give --source and --target files that have a text a line")
    source, _ = _examine(path, {"": "aligned"})
    if source is None:
        raise CorpusError(f"{path!r} is not a file of text that can be read")
    return source


def fingerprint(sources: Iterable[Source]) -> str:
    """SHA-256, as 64 hex digits, of every path, kind and size in order: equal while the corpus lists the same."""
    digest = hashlib.sha256()
    for source in sources:
        beside = [source.beside, source.beside_bytes] if source.beside else []
        digest.update(json.dumps([source.path, source.kind, source.bytes, *beside]).encode() + b"\n")
    return digest.hexdigest()


def _examine(path: str, kinds: Mapping[str, Kind]) -> tuple[Source | None, bytes]:
    """The source at ``path``, or None for other kinds and for what isn't a regular file; and the file's identity."""
    kind = next((kind for suffix, kind in kinds.items() if path.lower().endswith(suffix)), None)
    if kind is None:
        return None, b""
    with naming_errors(path):
        info = Path(path).stat()
    if not stat.S_ISREG(info.st_mode):  # opening a FIFO would wait for ever
        return None, b""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise CorpusError(f"the file name {path!r} is not UTF-8 and can't be recorded: rename the file") from None
    return Source(path, kind, info.st_size), _identity(info)


def _identity(info: os.stat_result) -> bytes:
    return (info.st_dev << 64 | info.st_ino).to_bytes(16)


def _paths(argument: str) -> Iterator[str]:
    """Every file, of whatever kind, that the argument stands for.

    In no order, and some several times: patterns such as ``**/*`` match a folder and, again, what is in it.
    """
    named = _exists(argument)
    if not named and not has_magic(argument):
        raise CorpusError(f"no such file or folder: {argument!r}; check the path, and the folder it is relative to")
    if named and argument.rstrip("/").endswith(_STORE_SUFFIX) and Path(argument).is_dir():
        raise CorpusError(f"{argument!r} is a datastore, not text: give the text it was made from")
    nothing = True
    for top in [argument] if named else _expand(*_split(argument)):
        nothing = False
        yield from _files_below(top) if Path(top).is_dir() else [top]
    if nothing:
        raise CorpusError(f"the pattern {argument!r} matches nothing; check it, and the folder it is relative to")


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
    if part == "**" and rest:
        for below, folder in _walk(prefix):
            if folder:
                yield from _expand(below, rest)
        return
    matches: Iterable[str]
    if part == "**":
        matches = [prefix or "."]  # a folder stands for everything below it
    elif has_magic(part):
        matches = (
            prefix + name for name, folder in _entries(prefix) if (folder or not rest) and fnmatchcase(name, part)
        )
    else:
        matches = [prefix + part] if _exists(prefix + part) else []
    for match in matches:
        yield from _expand(f"{match}/", rest) if rest else [match]


def _files_below(folder: str) -> Iterator[str]:
    return (path for path, is_folder in _walk(folder.rstrip("/") + "/") if not is_folder)


def _walk(top: str) -> Iterator[tuple[str, bool]]:
    """Each folder from ``top`` down, as "" or a path that ends in "/", and its files; whether it is a folder.

    A folder reached twice through links is walked once, by the name that comes first.
    """
    seen: set[bytes] = set()
    waiting = [top]
    while waiting:
        prefix = waiting.pop()
        with naming_errors(prefix):
            identity = _identity(Path(prefix).stat())
        if identity in seen:
            continue
        seen.add(identity)
        yield prefix, True
        folders = []
        for name, folder in _entries(prefix):
            if folder:
                folders.append(name)
            else:
                yield prefix + name, False
        waiting.extend(f"{prefix}{name}/" for name in sorted(folders, reverse=True))


def _entries(prefix: str) -> Iterator[tuple[str, bool]]:
    """The names in a folder as the system lists them, and whether each is a folder; no hidden ones, no datastores."""
    with naming_errors(prefix or "."), os.scandir(prefix or ".") as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                folder = _is_folder(entry)
                if not (folder and entry.name.endswith(_STORE_SUFFIX)):
                    yield entry.name, folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself is no folder
            return False
        raise
