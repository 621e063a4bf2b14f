"""Self-check of an index: the last task of each segment in a build."""

from typing import Any

import numpy as np

from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.files import write_json
from knnstore.indexes.check import self_check
from knnstore.indexes.plan import CHECK, CHECK_FILE, CHECKED_NEIGHBOURS, IndexFolder, segment_reference
from knnstore.indexes.registry import type_of
from knnstore.planning import BASE_BYTES
from knnstore.records import to_json
from knnstore.scheduling import Job


def check_lists(folder: IndexFolder[Any], store: Datastore, segment: Segment, job: Job) -> None:
    """Measure and record the recall within a segment, with its own held-out queries or else those of the store."""
    commits = folder.list_commits(segment_reference(segment))
    if commits.find(CHECK):
        return
    held_out = segment.queries()
    if not len(held_out):
        held_out = np.concatenate([other.queries() for other in store.segments])
    with job.reporter.bar("check", 1, "check") as advance:
        single = store.only(segment.root.name)
        k = max(1, round(min(CHECKED_NEIGHBOURS, store.rows) * segment.rows / store.rows))
        searcher = type_of(folder).open(single, folder, checked=False)
        check = self_check(single, searcher, held_out, k, max(2**28, job.memory - BASE_BYTES))
        path = folder.lists(segment.root.name, CHECK_FILE)
        write_json(path, to_json(check))
        commits.commit(CHECK, [path])
        advance(1)
