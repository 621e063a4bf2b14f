"""Rebuild a segment's files from the index's copy, the LM, the corpus, or its records."""

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from knnstore.corpus.options import ReadOptions
from knnstore.corpus.parts import plan_parts
from knnstore.corpus.selection import Selection
from knnstore.corpus.sources import find_sources, fingerprint
from knnstore.datastore.arrays import METADATA_FILE, create_array
from knnstore.datastore.commits import FileRecord, chunk_number, file_damage, load_commit
from knnstore.datastore.layout import DOCUMENTS_FILE, LAYOUT_TASK
from knnstore.datastore.listed import gather_rows
from knnstore.datastore.segment import ARRAYS, DOCUMENTS_TASK, SAMPLES_TASK, Segment, keys_task
from knnstore.datastore.segmentwriter import SegmentWriter, TaskWriter
from knnstore.errors import CorpusError, CorruptStoreError, MismatchError
from knnstore.files import make_folder, write_atomically
from knnstore.holdout import choose_heldout
from knnstore.indexes.plan import IndexFolder
from knnstore.ingestion.assembly import assemble
from knnstore.ingestion.tasks import (
    DecodeTask,
    RecogniseTask,
    SamplesTask,
    TokenTask,
    decoded_bytes,
    keys_stage,
    recognise_model,
    remove_parts,
    tokenise,
    write_keys,
    write_samples,
)
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job
from knnstore.wording import option


@dataclass(frozen=True, slots=True)
class Remaker:
    """Rebuild files of one segment. ``spec``: the LM that made it; ``index``: the store's, if its plan is intact."""

    segment: Segment
    index: IndexFolder[Any] | None
    spec: LmSpec
    corpus: tuple[str, ...]
    selection: Selection
    job: Job

    def _lm(self) -> LmSpec:
        """Return the LM for workers. Raises MismatchError unless it is the LM that made the segment."""
        task = RecogniseTask(self.segment.root, self.spec, self.segment.order)
        recognition = self.job.run_one(recognise_model, task)
        if recognition.differing:
            raise MismatchError(
                f"{self.segment.root} was made by model {self.segment.plan.model.name!r}, and "
                f"{', '.join(recognition.differing)} of {self.spec.model} differ: give the model that made it with "
                f"{option('model')}"
            )
        return replace(self.spec, identity=recognition.identity)

    def metadata(self, name: str, record: FileRecord | None) -> str:
        """Write ``zarr.json`` of an array, or of the segment's group if ``name`` is empty, as it was recorded."""
        path = self.segment.root / name / METADATA_FILE
        with tempfile.TemporaryDirectory() as folder:
            form = self.segment.form(name or "keys")
            group, array = create_array(Path(folder) / "segment" / "a", *form)
            write_atomically(path, (array if name else group).read_bytes())
        if record is not None and (damage := file_damage(self.segment.root, record)):
            raise CorruptStoreError(f"{path} {damage}: the installed zarr writes it differently")
        return "from the plan"

    def values(self, chunk: int, record: FileRecord | None) -> str:
        """Copy a chunk of values from the index; return how it was rebuilt, in words."""
        self._copy(TaskWriter(self.segment, {}), "values", chunk, record)
        return "from the index's copy"

    def keys(self, chunk: int, record: FileRecord | None) -> str:
        """Copy a chunk of keys from the index, or else compute it with the LM; return which, in words."""
        try:
            with SegmentWriter(self.segment).task(keys_task(chunk)) as task:
                task.facts["rows"] = self._copy(task, "keys", chunk, record)
        except CorruptStoreError:
            self.job.run_one(write_keys, keys_stage(self.segment, self._lm()).tasks[chunk])
            same = record is not None and file_damage(self.segment.root, record) is None
            return "by the LM" if same or record is None else "by the LM, in other bytes than before"
        return "from the index's copy"

    def samples(self) -> str:
        """Compute the int8 scales and the held-out queries with the LM. Intact scales are kept.

        Raises CorruptStoreError if the LM can't make the scales: a compaction or a merge takes those of its sources.
        """
        root = self.segment.root
        path = root / "commits" / f"{SAMPLES_TASK}.json"
        record = load_commit(path) if path.is_file() else None
        facts = {name: value for name, value in (record.facts if record else {}).items() if name == "scales_of"}
        scales = next(
            (file for file in (record.files if record else ()) if file.path.startswith("key_scales/c/")), None
        )
        task = SamplesTask(root, self._lm())
        if scales is not None and file_damage(root, scales) is None:
            task = replace(task, kept=facts)
        elif facts:
            task = replace(task, scales_of=root.parent / str(facts["scales_of"]) if facts["scales_of"] else None)
        elif self.segment.plan.key_dtype == "int8":
            task = replace(task, crc32c=scales.crc32c if scales else -1)
        self.job.run_one(write_samples, task)
        return "by the LM"

    def layout(self) -> str:
        """Create the array of keys again, without its chunks."""
        with SegmentWriter(self.segment).task(LAYOUT_TASK) as task:
            task.create("keys", self.segment.rows)
        return "recorded again"

    def tokens(self) -> str:
        """Rebuild the documents, the values and the held-out tokens from the corpus."""
        if self.segment.plan.key.task == "seq2seq":
            raise CorruptStoreError("pairs of texts can't be rebuilt from their files: use a copy, or ingest again")
        if not self.corpus:
            raise CorpusError(f"this needs the corpus: give the paths that were ingested with {option('corpus')}")
        files = find_sources(self.corpus, self.selection, [self.segment.plan.text_field])
        if fingerprint(files) != self.segment.plan.sources:
            remedy = (
                f"its names and sizes aren't those that {self.segment.root} was made from: give the same paths, "
                f"{option('include')} and {option('exclude')} as for the ingest, from the same folder"
            )
            raise MismatchError.about("corpus", " ".join(self.corpus), remedy=remedy)
        spec = self._lm()
        reading = ReadOptions(text_field=self.segment.plan.text_field, errors=self.segment.plan.errors)  # type: ignore[arg-type]
        parts = plan_parts(files)
        make_folder(self.segment.root / "parts")
        list(self.job.runner.run(tokenise, (TokenTask(self.segment.root, spec, part, reading) for part in parts)))
        (self.segment.root / "commits" / f"{DOCUMENTS_TASK}.json").unlink(missing_ok=True)
        for name in ("values", "heldout"):  # so that damaged metadata isn't taken for a valid array
            (self.segment.root / name / METADATA_FILE).unlink(missing_ok=True)
        share = self.segment.plan.holdout
        assemble(
            self.segment,
            len(parts),
            lambda tokens, _, repeats: choose_heldout(tokens, share, repeats=repeats),
            self._decoded_bytes,
        )
        remove_parts(self.segment.root)
        return "from the corpus"

    def _decoded_bytes(self, texts: tuple[tuple[int, ...], ...]) -> list[int]:
        return self.job.run_one(decoded_bytes, DecodeTask(self.spec, texts))

    def _copy(self, task: TaskWriter, name: str, chunk: int, record: FileRecord | None) -> int:
        """Write a chunk of keys or values from the index's copy; return the number of rows."""
        if self.index is None:
            raise CorruptStoreError(f"{self.segment.root} has no index to copy {name} from")
        begin = chunk * (size := self.segment.form(name).chunk_rows)
        lists, end = self.index.lists(self.segment.root.name), min(begin + size, self.segment.rows)
        file = task.write_chunk(name, chunk, gather_rows(lists, name, begin, end))
        if record is not None and (damage := file_damage(self.segment.root, record)):
            raise CorruptStoreError(f"{file} {damage}")
        return end - begin


_WORKS = {DOCUMENTS_TASK: "tokens", LAYOUT_TASK: "layout", SAMPLES_TASK: "samples"}


def work_of(path: str) -> tuple[str, int]:
    """Return the work that rebuilds a path inside a segment, and its chunk: ``("keys", 7)`` for ``keys/c/7/0``."""
    name, *inside = path.split("/")
    if name == "commits":
        number = re.fullmatch(r"keys-([0-9]+)\.json", inside[-1])
        return ("keys", int(number[1])) if number else (_WORKS.get(inside[-1].removesuffix(".json"), ""), 0)
    if path.endswith(METADATA_FILE):
        return "metadata", 0
    chunk = chunk_number(path) or 0
    if name in ("keys", "values"):  # also stored in the index
        return name, chunk
    task = DOCUMENTS_TASK if path == DOCUMENTS_FILE else ARRAYS[name].task if name in ARRAYS else ""
    return _WORKS.get(task, ""), chunk
