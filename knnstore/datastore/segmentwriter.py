"""Writing a segment: task by task, each marked done once its files are on the device.

A task records the files that it writes in the order of the calls. What a segment's arrays are, only ``ARRAYS`` says.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.arrays import create_array, write_chunk
from knnstore.datastore.chunkwriter import ChunkWriter
from knnstore.datastore.commits import begin_part
from knnstore.datastore.layout import LAYOUT_TASK, SEGMENT_PLAN
from knnstore.datastore.segment import Segment, SegmentPlan, keys_task

MOST_QUERIES = 1024


class SegmentWriter:
    """Writes a segment's tasks and commits them."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment

    @classmethod
    def begin(cls, root: Path, plan: SegmentPlan) -> "SegmentWriter":
        """Begin the segment at ``root``, or go on with it under this plan."""
        begin_part(root, SEGMENT_PLAN, plan)
        return cls(Segment(root))

    def lacks(self, task: str) -> bool:
        """Whether a task isn't done yet."""
        return self.segment.commits.find(task) is None

    @contextmanager
    def task(self, name: str, **facts: Any) -> Iterator["TaskWriter"]:
        """A task to write; it is committed when the context ends well."""
        task = TaskWriter(self.segment, facts)
        yield task
        self.segment.commits.commit(name, task.files, **task.facts)

    def lay_out_keys(self, rows: int | None = None) -> None:
        """Make the array of keys, unless that is done. ``rows``: how many, where the documents don't say it yet."""
        if self.lacks(LAYOUT_TASK):
            with self.task(LAYOUT_TASK) as task:
                task.create("keys", self.segment.rows if rows is None else rows)

    def write_keys(self, chunk: int, keys: np.ndarray[Any, Any]) -> int:
        """Write a chunk of stored keys (n, d); return n."""
        with self.task(keys_task(chunk), rows=len(keys)) as task:
            task.write_chunk("keys", chunk, keys)
        return len(keys)


class TaskWriter:
    """Writes the files of one task. ``facts``: what its commit record says besides them."""

    def __init__(self, segment: Segment, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.files: list[Path] = []
        self._segment = segment

    def file(self, name: str) -> Path:
        """The path of a file of the task, which the caller writes."""
        self.files.append(self._segment.root / name)
        return self.files[-1]

    def create(self, name: str, rows: int) -> None:
        """Make an array, of which no chunk is written yet."""
        self.files += create_array(self._segment.array_path(name), *self._segment.form(name, rows))

    def write_chunk(self, name: str, chunk: int, block: np.ndarray[Any, Any]) -> Path:
        """Write a chunk of an array that was made; return its file."""
        self.files.append(write_chunk(self._segment.array_path(name), chunk, block))
        return self.files[-1]

    @contextmanager
    def appending(self, **rows: int) -> Iterator[list[ChunkWriter]]:
        """Make arrays of so many rows by their names, and give a writer of each to append the rows to."""
        writers = []
        for name, count in rows.items():
            self.create(name, count)
            write = partial(write_chunk, self._segment.array_path(name))
            writers.append(ChunkWriter(write, self._segment.form(name, count).chunk_rows))
        yield writers
        for writer in writers:
            writer.finish()
            self.files += writer.results

    def write_whole(self, **arrays: np.ndarray[Any, Any]) -> None:
        """Make small arrays, by their names, and write each as one chunk."""
        begin = len(self.files)
        for name, array in arrays.items():
            self.create(name, len(array))
            if len(array):
                self.write_chunk(name, 0, array)
        # the metadata of the group, which they have in common, is recorded once
        self.files[begin:] = dict.fromkeys(self.files[begin:])

    def write_queries(self, tokens: np.ndarray[Any, Any], queries: np.ndarray[Any, Any]) -> None:
        """Write up to 1024 queries, float32 (n, d), spread evenly over those given.

        ``tokens``: int64 (n,), the places of their tokens in the segment's array ``heldout``.
        """
        chosen = np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES), dtype=np.int64)
        self.write_whole(queries=queries[chosen].astype(np.float32), query_tokens=tokens[chosen].astype(np.int64))
        self.facts["queries"] = len(chosen)

    def write_sources(self, tokens: Int64, blocks: Iterable[Any]) -> None:
        """Write what all documents are translations of, int64 (documents,) ``tokens`` each, and where each begins."""
        with self.appending(sources=int(tokens.sum()), source_offsets=len(tokens) + 1) as (sources, offsets):
            for block in blocks:
                sources.append(block)
            offsets.append(np.concatenate([[0], np.cumsum(tokens)]))
