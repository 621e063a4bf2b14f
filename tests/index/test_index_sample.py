"""The training sample: the same bytes whoever gathers which part of it, when, and how often."""

import numpy as np
import pytest
from index_stores import clustered_keys, make_store

from knnstore.datastore.layout import INDEX_PLAN
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError
from knnstore.files import make_folder, write_json
from knnstore.indexes.ivfpq import sample
from knnstore.indexes.ivfpq.sample import choose_rows, gather_part, load_sample, sample_stage
from knnstore.indexes.registry import open_index
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.indexing.plan import plan_work
from knnstore.living.remove import remove
from knnstore.records import to_json
from knnstore.scheduling import Job, SerialRunner

OPTIONS = IndexOptions(nlist=16, train_sample=3000)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Two segments of int8 keys, some of them removed, and parts of about 700 keys."""
    monkeypatch.setattr(sample, "_PART_ROWS", 700)
    keys = clustered_keys(6000, 8)
    made = make_store(
        tmp_path / "s.knnstore", [keys[:4000], keys[4000:]], key_dtype="int8", chunk_rows=256, document_rows=100
    )
    remove(made.root, ["300.txt", "1200.txt"])
    return Datastore(made.root)


@pytest.fixture
def folder(store):
    """The folder of the index to be, with the plan alone."""
    planned = plan_work(store, OPTIONS, Job()).folder
    make_folder(planned.root)
    write_json(planned.root / INDEX_PLAN, to_json(planned.plan))
    sample_stage(store, planned).part.prepare()
    return open_index(store.root, planned.plan.name)


def test_the_parts_are_shares_of_whole_chunks(store, folder):
    tasks = sample_stage(store, folder).tasks
    assert len(tasks) >= 4
    for name, rows in zip(("0000", "0001"), choose_rows(store, 3000, 0), strict=True):
        parts = [task.wanted for task in tasks if task.segment == name]
        np.testing.assert_array_equal(np.concatenate(parts), rows)
        chunks = [set((part // 256).tolist()) for part in parts]
        assert len(set.union(*chunks)) == sum(map(len, chunks))


def test_the_sample_is_the_same_in_whatever_order_and_however_often_its_parts_are_gathered(store, folder):
    tasks = sample_stage(store, folder).tasks
    for task in [*reversed(tasks), tasks[1]]:
        assert gather_part(task) == task.rows
    read = load_sample(store, folder, len(tasks), lambda _: None)
    chosen = choose_rows(store, 3000, 0)
    expected = [segment.keys(0, segment.rows)[rows] for segment, rows in zip(store.segments, chosen, strict=True)]
    np.testing.assert_array_equal(read.stored, np.concatenate(expected))
    assert read.ends.tolist() == np.cumsum([len(rows) for rows in chosen]).tolist()


def test_a_build_that_was_interrupted_gathers_the_parts_that_are_left(store, counting_runner):
    with pytest.raises(InterruptedError):
        build_index(Datastore(store.root), OPTIONS, Job(counting_runner(most=2)))
    resumed = counting_runner()
    report = build_index(Datastore(store.root), OPTIONS, Job(resumed))
    parts = len(sample_stage(store, open_index(store.root, report.plan.name)).tasks)
    assert resumed.ran["gather_part"] == parts - 2
    assert not list(store.root.glob("index/*/runs"))


def test_a_part_that_was_damaged_is_told_and_gathered_again(store, counting_runner):
    class Damaging(SerialRunner):
        """Flips a bit of a part before the training."""

        def run_alone(self, function, task, advance):
            (part,) = store.root.glob("index/*/runs/sample/part-000001")
            data = bytearray(part.read_bytes())
            data[7] ^= 1
            part.write_bytes(data)
            return function(task, advance)

    with pytest.raises(CorruptStoreError, match=r"part-000001 isn't what was written .*run the same command again"):
        build_index(Datastore(store.root), OPTIONS, Job(Damaging()))
    again = counting_runner()
    build_index(Datastore(store.root), OPTIONS, Job(again))
    assert again.ran["gather_part"] == 1
