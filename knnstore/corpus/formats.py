"""The format of a file, by the suffix of its name."""

import os
from collections.abc import Mapping
from typing import Literal

Kind = Literal["text", "html", "jsonl", "json", "parquet", "tsv", "aligned"]
Formats = Mapping[str, Kind]

_RECORDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
TEXT_FORMATS: Formats = {".txt": "text", ".md": "text", **_RECORDS}
PAIR_FORMATS: Formats = {".tsv": "tsv", **_RECORDS}
ON_REQUEST: Formats = {".html": "html", ".htm": "html", ".xhtml": "html"}
"""Formats of files that are read only if the user selects them; any other selected file is plain text."""

RECORD_KINDS: tuple[Kind, ...] = ("jsonl", "json", "parquet")
PACKINGS = (".gz", ".zst", ".bz2", ".xz")
"""Suffixes of compression formats, allowed for every format but Parquet."""

_LONGEST_TYPE = 16


def packing_of(path: str) -> str:
    """Return the suffix of the compression format, or ``""``."""
    return next((suffix for suffix in PACKINGS if path.lower().endswith(suffix)), "")


def kind_of(path: str, formats: Formats) -> Kind | None:
    """Return the format of a file with that name; None if no format has its suffix."""
    packing = packing_of(path)
    name = path.lower().removesuffix(packing)
    kind = next((kind for suffix, kind in formats.items() if name.endswith(suffix)), None)
    return None if packing and kind == "parquet" else kind


def type_of(path: bytes) -> str:
    """Return the type of a file as shown in the summary: ``.md``, ``.json.gz``, or ``""`` without a common suffix."""
    name = os.fsdecode(path.rpartition(b"/")[2]).lower()
    packing = packing_of(name)
    suffix = os.path.splitext(name.removesuffix(packing))[1] + packing  # noqa: PTH122 - a name, not a path
    usual = suffix.isprintable() and " " not in suffix and len(suffix) <= _LONGEST_TYPE
    return suffix if usual else ""


def listed(formats: Formats) -> str:
    """Return the suffixes as text for people."""
    return f"{' '.join(formats)} (also {' '.join(PACKINGS)})"
