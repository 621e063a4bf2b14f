"""Too little memory, or a worker that the system killed for want of it, is survived by a retry with a smaller batch."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from faults.material import bytes_of, differences
from index_stores import clustered_keys, make_store
from memory_jobs import Hungry, killed_unless_smaller, out_of_memory_unless_smaller

from knnstore.cli import main
from knnstore.errors import OutOfMemoryError
from knnstore.indexes.ivfpq.fill import fill_run
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.ingestion.tasks import KeyTask
from knnstore.lm.forward import KeyModel, key_model, window_keys
from knnstore.lm.scoring import window_scores
from knnstore.lm.spec import LmSpec
from knnstore.outofmemory import is_out_of_memory
from knnstore.scheduling import Job, local_runner
from knnstore.windows import cut_windows


@pytest.mark.parametrize(
    "ask",
    [
        lambda: np.empty(2**50, np.uint8),
        lambda: torch.empty(2**50, dtype=torch.uint8),
        lambda: pa.allocate_buffer(2**50),
        lambda: bytearray(2**50),
    ],
    ids=["numpy", "torch", "arrow", "python"],
)
def test_however_a_library_says_that_memory_is_short_it_is_understood(ask):
    with pytest.raises(Exception) as told:
        ask()
    assert is_out_of_memory(told.value)
    assert is_out_of_memory(RuntimeError("could not create a primitive"))  # oneDNN's
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


WINDOWS = cut_windows(np.array([0, 40, 95, 120]), np.array([40, 55, 25, 70]), context=32, stride=16)
TEXT = np.random.default_rng(0).integers(1, 8192, 200)


def tokens(document, begin, end):
    first = (0, 40, 95, 120)[document]
    return TEXT[first + begin : first + end]


@pytest.fixture(scope="module")
def model(made):
    return key_model(LmSpec(str(made / "lm"), dtype="float32"))


def rows_and(field, parts):
    rows = np.concatenate([part[0] for part in parts])
    return np.concatenate([field(part) for part in parts])[np.argsort(rows)]


@pytest.mark.parametrize("most", [5, 1])
@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_that_does_not_fit_is_run_in_halves_and_the_keys_are_the_same(model, monkeypatch, most, error):
    whole = rows_and(lambda part: part[1], list(window_keys(model, WINDOWS, tokens, 4096)))
    scores = list(window_scores(model, WINDOWS, tokens, 4096))
    sizes = []
    for name in ("keys", "keys_and_logits"):
        before = getattr(KeyModel, name)

        def within(self, ids, *rest, before=before):
            if len(ids) > most:
                raise error
            sizes.append(len(ids))
            return before(self, ids, *rest)

        monkeypatch.setattr(KeyModel, name, within)
    halved = rows_and(lambda part: part[1], list(window_keys(model, WINDOWS, tokens, 4096)))
    assert max(sizes) <= most < len(WINDOWS)
    np.testing.assert_allclose(halved, whole, rtol=0, atol=1e-6)
    log_p = [
        rows_and(lambda part: part[1], [(s.rows, s.log_p) for s in found])
        for found in (scores, list(window_scores(model, WINDOWS, tokens, 4096)))
    ]
    np.testing.assert_allclose(log_p[1], log_p[0], rtol=0, atol=1e-5)


def test_a_single_window_that_does_not_fit_is_one_sentence(model, monkeypatch):
    def refuse(*_):
        raise MemoryError("Unable to allocate 9 GB")

    model.padding(WINDOWS.context)
    monkeypatch.setattr(KeyModel, "keys", refuse)
    with pytest.raises(OutOfMemoryError, match=r"pass over 1 windows of .* \(Unable to allocate 9 GB\): .*workers"):
        list(window_keys(model, WINDOWS, tokens, 4096))
    monkeypatch.setattr(model, "_paddings", {})
    with pytest.raises(OutOfMemoryError, match=r"first passes over windows of 32 tokens \(Unable to allocate 9 GB\)"):
        list(window_keys(model, WINDOWS, tokens, 4096))


def test_a_task_of_keys_shrinks_until_each_window_is_alone():
    task, sizes = KeyTask(None, LmSpec("x"), 3, 100), []
    while task is not None:
        sizes.append(4096 // task.shrunk)
        name, task = task.name, task.smaller()
        assert name == "keys-000003"  # the same record, the same chunk
    assert sizes == [4096, 2048, 1024, 512, 256, 128, 64]


@pytest.mark.slow
def test_workers_that_the_system_kills_are_replaced_and_the_task_is_done_in_less_memory():
    with local_runner(1) as runner:
        done = sorted(runner.run(killed_unless_smaller, [Hungry(0), Hungry(1), Hungry(2)]))
        assert [number for number, _ in done] == [0, 1, 2]
        assert dict(done)[1] == 2
        assert sorted(runner.run(out_of_memory_unless_smaller, [Hungry(0), Hungry(1)])) == [(0, 4), (1, 4)]


def test_an_index_whose_runs_are_too_large_for_the_memory_is_built_in_smaller_ones(tmp_path, monkeypatch):
    whole, store = (
        make_store(tmp_path / name, [clustered_keys(2000, 8)], chunk_rows=256) for name in ("w.knnstore", "s.knnstore")
    )
    build_index(whole, IndexOptions(nlist=8), Job())
    sizes = []

    def hungry(task):
        sizes.append(task.last - task.first)
        if task.last - task.first > 2:
            raise MemoryError("Unable to allocate")
        return fill_run(task)

    monkeypatch.setattr("knnstore.indexes.ivfpq.fill.fill_run", hungry)
    build_index(store, IndexOptions(nlist=8), Job())
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert differences(bytes_of(store.root), bytes_of(whole.root)) == []


def test_a_command_that_gets_no_memory_says_so_in_one_sentence(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setattr("knnstore.verification.check._cover", lambda _: np.empty(2**50, np.uint8))
    done = CliRunner().invoke(main, ["verify", "--store", "books"])
    assert done.exit_code == 1
    assert "Error: not enough memory for this command (Unable to allocate 1.00 PiB" in done.output
