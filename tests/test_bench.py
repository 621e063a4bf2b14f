"""tools/bench.py and tools/make_keys.py: what they print, and that the baselines do what they are said to do."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TOOLS = str(Path(__file__).parents[1] / "tools")
MEGABYTES = 80


@pytest.fixture(scope="module", autouse=True)
def tools_on_the_path():
    sys.path.insert(0, TOOLS)
    yield
    sys.path.remove(TOOLS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from make_keys import make_store

    from knnstore.datastore.store import Datastore
    from knnstore.indexes.work import IndexOptions
    from knnstore.indexing.job import build_index
    from knnstore.scheduling import Job

    made = make_store(tmp_path_factory.mktemp("synthetic") / "keys", 6000, dimension=16)
    build_index(made, IndexOptions(nlist=32), Job())
    return Datastore(made.root)


def bench(capsys, *arguments):
    from bench import main

    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    return json.loads(printed[-1])


def hold(megabytes):
    return len(b"x" * (megabytes * 10**6))


# What is printed


def test_ingest_ends_with_one_line_of_json_that_names_its_ratios(capsys):
    result = bench(capsys, "ingest", "--quick", "--rows", "300", "--rounds", "1")
    assert result["bench"] == "ingest"
    assert {"ingest_vs_bare", "ingest_default_vs_bare", "ingest_vs_memmap"} <= result["ratios"].keys()
    assert all(np.isfinite(value) and value > 0 for value in result["ratios"].values())
    assert {row["contestant"] for row in result["rows"]} >= {"knnstore float32", "bare LM float32"}


def test_search_reports_recall_beside_speed(capsys):
    result = bench(capsys, "search", "--quick", "--rows", "2000", "--queries", "256", "--rounds", "1")
    ways = {"search_vs_faiss_ram", "search_vs_public_way"}
    assert {*ways, *(f"cpu_{way}" for way in ways), "recall_vs_faiss"} == result["ratios"].keys()
    recalls = {row["contestant"]: row["recall@1024"] for row in result["rows"]}
    assert 0.5 < recalls["faiss in RAM"] <= recalls["knnstore lists"] <= 1


def test_the_curve_and_its_figure_have_every_contestant_warm_and_cold(store, tmp_path, monkeypatch):
    from benchmarks import curves
    from benchmarks.faiss_baselines import OnDisk, float16_map, in_ram
    from make_keys import ClusteredKeys

    for name, value in {
        "PROBES": (2, 64),
        "BULK": 60,
        "FAISS": 9,
        "SCRIPT": 5,
        "SINGLE_WARM": 3,
        "SINGLE_COLD": 2,
    }.items():
        monkeypatch.setattr(curves, name, value)
    material = curves.Material(
        store,
        in_ram(store, tmp_path),
        OnDisk(store, tmp_path),
        float16_map(store, tmp_path),
        ClusteredKeys(16).queries(2, 60),
        20,
        2**30,
    )
    points = curves.curve(material)
    assert [(p.way, p.nprobe) for p in points if p.nprobe == 2] == [
        (way, 2) for way in ("knnstore", "faiss in RAM", "faiss on disk", "faiss + memmap")
    ]  # and 64 of 32 lists is left out
    ours = points[0]
    assert ours.recall >= points[1].recall > 0.1
    assert min(ours.bulk_warm, ours.bulk_cold, ours.one_warm, ours.one_cold) > 0
    pytest.importorskip("matplotlib", reason="the figure needs the extra [figures]")
    curves.draw_curves(points, "synthetic keys", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_other_libraries_are_compared_where_they_are_and_named_where_they_are_not(store, tmp_path):
    from benchmarks.asking import true_neighbours
    from benchmarks.other_tools import compare_others
    from make_keys import ClusteredKeys

    queries = ClusteredKeys(16).queries(2, 40)
    true = true_neighbours(store, queries, 10)
    tables, notes = compare_others(store, queries, 10, tmp_path, true_of=(queries, true))
    assert notes[0].startswith("DiskANN: left out")
    pytest.importorskip("usearch", reason="usearch isn't installed")
    recalls = {row[0]: row[2] for row in tables[0].rows}
    assert recalls["usearch, HNSW, expansion 20"] > 0.9


def test_the_trade_judges_forms_by_what_their_bytes_stand_for():
    from benchmarks.measuring import Settings
    from benchmarks.trade import Judge, forms
    from make_keys import ClusteredKeys

    keys, clusters = ClusteredKeys(64).draw(0, 1200)
    queries = ClusteredKeys(64).queries(2, 256)
    judge = Judge(keys, queries, clusters, clusters[:256], np.full(256, -5.0))
    judged = {what: (size, *judge(*form)) for what, size, *form in forms(keys, queries, Settings(quick=True))}
    assert next(iter(judged)) == "int8 of 64"
    assert judged["int8 of 64"][1] > 0.98
    assert judged["PCA to 8, int8"][1] < judged["PCA to 48, int8"][1] < judged["int8 of 64"][1]
    assert judged["codes of 32"][0] == 32
    assert judged["codes of 32"][1] < judged["codes of 32, re-ranked"][1] == judged["int8 of 64"][1]
    assert all(1 < perplexity < 200 for _, _, perplexity in judged.values())


def test_a_plan_is_held_against_what_the_build_takes(capsys, monkeypatch):
    from benchmarks import plan

    monkeypatch.setattr(plan, "make_store", lambda path, rows, like: make_small(path))
    result = bench(capsys, "plan", "--quick")
    assert {"time_vs_promise", "memory_vs_promise", "disk_vs_promise", "most_disk_vs_promise"} == result[
        "ratios"
    ].keys()
    assert 0.7 < result["ratios"]["disk_vs_promise"] < 2  # so few keys are no more than the records about them


def test_overlap_says_what_10_to_the_9_stored_tokens_cost(capsys, small_reference):
    arguments = ("--rows", "20000", "--rounds", "1", "--store", str(small_reference / "books.knnstore"))
    result = bench(capsys, "overlap", *arguments)
    rows = result["rows"]
    assert len(rows) == 4 and rows[1]["tokens"] == 20_000 and "held-out tokens, by a pass" in rows[3]["what"]
    assert all(row["CPU s for 10⁹ tokens"] > 0 for row in rows)


def make_small(path):
    from make_keys import make_store

    return make_store(path, 4000, dimension=16)


def test_a_corpus_without_text_is_one_sentence_and_exit_code_2(capsys, tmp_path):
    from bench import main

    assert main(["ingest", "--corpus", str(tmp_path)]) == 2
    assert "holds no .txt file" in capsys.readouterr().err


def test_cluster_reports_efficiency_and_what_a_task_costs(capsys, monkeypatch, logged_by_dask):
    from benchmarks import cluster

    monkeypatch.setattr(cluster, "_SECONDS", 0.02)
    monkeypatch.setattr(cluster, "_QUICK", (1, 2))
    result = bench(capsys, "cluster", "--quick")
    assert {"efficiency", "efficiency_1", "efficiency_2", "overhead_vs_task"} == result["ratios"].keys()
    assert all(0 < value < 1 for name, value in result["ratios"].items() if name.startswith("efficiency"))
    assert result["about"]["overhead of a task, ms"] > result["about"]["in this process, ms"] > 0
    assert logged_by_dask == []


# How is measured


def test_contestants_take_turns_and_ratios_compare_the_same_round():
    from benchmarks.measuring import in_turn, ratio

    calls = []
    speeds = {"a": iter([10.0, 4.0, 30.0]), "b": iter([5.0, 2.0, 3.0])}
    contestants = {name: lambda name=name: (calls.append(name), next(speeds[name]))[1] for name in speeds}
    rates = in_turn(contestants, 3)
    assert calls == ["a", "b"] * 3
    assert ratio(rates, "a", "b") == 2.0  # of 2, 2 and 10


def test_the_peak_is_that_of_the_process_that_worked():
    from benchmarks.measuring import in_own_process

    measured = in_own_process(hold, MEGABYTES)
    assert measured.value == MEGABYTES * 10**6
    assert MEGABYTES * 1e6 * 0.95 < measured.peak_bytes < MEGABYTES * 1e6 * 1.5


def test_the_memory_of_a_child_process_is_counted():
    import subprocess

    from benchmarks.memory import resident_bytes, tree

    inner = f"x = b'x' * {MEGABYTES * 10**6}; print(1, flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        assert len(tree(process.pid)) == 2
        assert resident_bytes(process.pid) < MEGABYTES * 1e6 < sum(map(resident_bytes, tree(process.pid)))
    finally:
        process.communicate(b"\n")


# The baselines


def test_bare_lm_and_ingest_read_the_same_tokens(tmp_path, tiny_corpus):
    from benchmarks.ingest import task_batches
    from benchmarks.material import KeepingKeyTasks

    from knnstore.datastore.segment import Segment
    from knnstore.ingestion.job import ingest
    from knnstore.ingestion.plan import IngestOptions
    from knnstore.scheduling import Job

    runner = KeepingKeyTasks()
    ingest(IngestOptions(corpus=(str(tiny_corpus),), store=str(tmp_path / "s"), chunk_rows=1024), Job(runner))
    segment = Segment(runner.kept[0].segment)
    batches, read = task_batches(runner.kept)
    assert len(runner.kept) == segment.chunks > 1
    # each window's own tokens but the last, after BOS or its context; every stored token at least once
    assert segment.rows <= read < 3 * segment.rows
    heads = {tuple(ids[mask][:8].tolist()) for batch, masks in batches for ids, mask in zip(batch, masks, strict=True)}
    first = int(segment.documents.first_row[0])
    assert (0, *segment.values(first, first + 7).tolist()) in heads


def test_the_memmap_loop_saves_the_input_of_the_last_feed_forward_block(tmp_path):
    from benchmarks.ingest import memmap_loop
    from benchmarks.material import bare_model

    from knnstore.lm.forward import key_model
    from knnstore.lm.spec import LmSpec

    ids = torch.arange(1, 21).reshape(2, 10)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 6:] = False
    assert memmap_loop(bare_model("wiki-lm", "float32"), [(ids, mask)], 16, tmp_path)() > 0
    saved = np.fromfile(tmp_path / "memmap.keys", np.float16).reshape(16, -1)
    expected = key_model(LmSpec("wiki-lm", dtype="float32")).keys(ids.numpy())[mask].numpy()
    np.testing.assert_allclose(saved, expected, rtol=2e-3, atol=2e-3)
    assert np.fromfile(tmp_path / "memmap.values", np.int32).tolist() == ids[mask].tolist()


def test_faiss_in_ram_and_on_disk_finds_what_the_codes_of_the_index_find(store, tmp_path):
    from benchmarks.faiss_baselines import OnDisk, in_ram
    from make_keys import ClusteredKeys

    from knnstore.indexes.check import recall
    from knnstore.indexes.ivfpq.search import Searcher

    queries = ClusteredKeys(16).queries(2, 50)
    mine = Searcher(store).search(queries, 20, 8, method="quantised", rows=True).rows
    mapped = OnDisk(store, tmp_path)
    mapped.unmap()
    for index in (in_ram(store, tmp_path), mapped.index):
        index.nprobe = 8
        assert recall(mine, index.search(queries, 20)[1]) > 0.97


def test_re_ranking_reads_the_right_keys(store, tmp_path):
    from benchmarks.faiss_baselines import float16_map, in_ram, key_blocks, reranked
    from make_keys import ClusteredKeys

    queries = ClusteredKeys(16).queries(2, 70)
    parts = list(reranked(in_ram(store, tmp_path), float16_map(store, tmp_path), queries, 5))
    distances, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    keys = np.concatenate([block for _, block in key_blocks(store)])
    np.testing.assert_allclose(distances, np.square(queries[:, None] - keys[rows]).sum(2), rtol=1e-2, atol=1e-2)


def test_filling_is_timed_alone_and_in_every_way(store, tmp_path):
    from benchmarks.index import faiss_disk_seconds, faiss_ram_seconds, knnstore_seconds

    assert knnstore_seconds(store.root, 4 * 10**9) > 0
    assert faiss_ram_seconds(store.root) > 0
    assert faiss_disk_seconds(store.root, tmp_path) > 0


# Synthetic keys


def test_the_same_arguments_make_the_same_keys_in_any_chunk_and_another_seed_others(tmp_path):
    from make_keys import ClusteredKeys, make_store

    one, other = (make_store(tmp_path / name, 3000, dimension=8) for name in ("one", "other"))
    files = [path.relative_to(one.root) for path in one.root.rglob("*") if path.is_file()]
    files = [file for file in files if file.parts[0] != "log"]  # which says when
    assert len(files) > 10
    assert all((one.root / file).read_bytes() == (other.root / file).read_bytes() for file in files)
    assert not np.array_equal(ClusteredKeys(8, 1).draw(0, 9)[0], ClusteredKeys(8, 0).draw(0, 9)[0])
    assert not np.array_equal(ClusteredKeys(8).draw(1, 9)[0], ClusteredKeys(8).draw(0, 9)[0])


def test_synthetic_keys_are_clustered_and_decode_to_what_was_drawn(store):
    from make_keys import ClusteredKeys

    segment = store.segments[0]
    keys = segment.codec.decode(segment.keys(0, segment.rows))
    drawn, clusters = ClusteredKeys(16).draw(0, segment.rows)
    np.testing.assert_allclose(keys, drawn, atol=0.51 * segment.codec.scales.max())
    largest = drawn[clusters == np.bincount(clusters).argmax()]
    assert largest.var(axis=0).sum() < 0.4 * drawn.var(axis=0).sum()


def test_a_synthetic_store_is_never_made_over_another(store):
    from make_keys import make_store

    from knnstore.errors import UsageError

    with pytest.raises(UsageError, match="isn't empty"):
        make_store(store.root, 10)
