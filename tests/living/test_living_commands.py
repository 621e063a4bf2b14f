"""A store that grows and shrinks by the commands as typed: real LM, real text, and ``kill -9``."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.datastore.arrays import open_array, read_rows
from knnstore.datastore.store import Datastore

pytestmark = pytest.mark.slow

INGEST = ("ingest", "--corpus", "books", "--chunk-rows", "256", "--context", "128", "--workers", "0")
FIXED = ("--exact", "--k", "1024", "--lambda", "0.3", "--temperature", "20", "--text", "text.txt")
MOST_SECONDS = 120


def typed(folder, *arguments):
    """A command in this process, where the LM stays loaded; what it printed."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(
            main, [*arguments, "--quiet"] if arguments[0] not in ("log", "restore") else arguments
        )
    assert done.exit_code == 0, done.output
    return done.stdout


def answered(folder, *arguments):
    return json.loads(typed(folder, *arguments, "--json"))


def perplexity(folder, store, *arguments):
    return answered(folder, "score", "--store", store, *FIXED, *arguments)["knn"]["perplexity"]


def killed_when(moment, folder, *command):
    """Start the command and kill -9 its process group as soon as ``moment()`` holds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "knnstore", *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    begun = time.monotonic()
    while process.poll() is None and not moment():
        assert time.monotonic() - begun < MOST_SECONDS
        time.sleep(0.002)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return killed


@pytest.fixture(scope="module")
def grown(tiny_corpus, tmp_path_factory):
    """A folder with ``books/`` of seven documents, an eighth in ``text.txt`` to score, and stores: ``s`` got them in
    two parts, ``whole`` at once, ``fewer`` all but one.
    """
    folder = tmp_path_factory.mktemp("grown")
    (folder / "books").mkdir()
    *documents, text = sorted(tiny_corpus.iterdir())
    shutil.copy(text, folder / "text.txt")
    for path in documents[:4]:
        shutil.copy(path, folder / "books")
    typed(folder, *INGEST, "--store", "s", "--holdout", "0")
    typed(folder, "index", "--store", "s", "--nlist", "16")
    shutil.copytree(folder / "s.knnstore", folder / "young.knnstore")
    for path in documents[4:]:
        shutil.copy(path, folder / "books")
    typed(folder, *INGEST, "--store", "s", "--holdout", "0")
    typed(folder, "index", "--store", "s", "--nlist", "16")
    typed(folder, *INGEST, "--store", "whole", "--holdout", "0")
    shutil.copytree(folder / "books", folder / "all")
    (folder / "books" / documents[2].name).unlink()
    typed(folder, *INGEST, "--store", "fewer", "--holdout", "0")
    shutil.rmtree(folder / "books")
    (folder / "all").rename(folder / "books")
    return folder, f"books/{documents[2].name}"


@pytest.fixture
def folder(grown, tmp_path):
    shutil.copytree(grown[0], tmp_path / "work")
    return tmp_path / "work"


def everything_in(root):
    """The bytes of every file of a store, and the contents of its arrays and tables as they are before compression."""
    found = [path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()]
    for path in root.rglob("zarr.json"):
        if json.loads(path.read_text())["node_type"] == "array":
            found.append(read_rows(path.parent, 0, open_array(path.parent).shape[0]).tobytes())
    found += [str(pq.read_table(path).to_pylist()).encode() for path in root.rglob("*.parquet")]
    return b"\0".join(found)


def test_growing_and_shrinking_a_store_gives_the_perplexity_of_one_made_at_once(grown, folder):
    name = grown[1]
    whole, fewer = perplexity(folder, "whole"), perplexity(folder, "fewer")
    assert perplexity(folder, "s") == pytest.approx(whole, rel=5e-5)
    assert fewer != pytest.approx(whole, rel=5e-4)
    every_list = perplexity(folder, "s", "--without", name)
    assert every_list == pytest.approx(fewer, rel=5e-5)
    report = answered(folder, "remove", "--store", "s", "--document", name)
    assert (report["documents"], report["names"]) == (1, [name])
    assert perplexity(folder, "s") == pytest.approx(fewer, rel=5e-5)

    (store,) = [Datastore(folder / "s.knnstore")]
    segment = store.segments[0]
    number = next(n for n, d in enumerate(segment.documents.origins()) if d.path == name)
    rows = slice(int(segment.documents.first_row[number]), int(segment.documents.first_row[number + 1]))
    keys, tokens = segment.keys(0, segment.rows)[rows], segment.values(0, segment.rows)[rows]
    store.close()
    needles = [name.encode(), tokens[:8].tobytes(), tokens[-8:].tobytes(), *(key.tobytes() for key in keys[9::50])]
    before = everything_in(folder / "s.knnstore")
    assert all(needle in before for needle in needles)
    typed(folder, "compact", "--store", "s")
    after = everything_in(folder / "s.knnstore")
    assert not [needle for needle in needles if needle in after]
    assert segment.keys is not None and len(after) < len(before)
    assert perplexity(folder, "s") == pytest.approx(fewer, rel=5e-5)
    result = answered(folder, "score", "--store", "s", "--nprobe", "16", *FIXED[1:])
    assert result["knn"]["perplexity"] == pytest.approx(fewer, rel=5e-4)
    assert result["keys"] == Datastore(folder / "fewer.knnstore").rows

    log = typed(folder, "log", "--store", "s")
    assert [line.split("  ")[-1].split(":")[0] for line in log.splitlines()[1:7]] == [
        "ingest", "index", "ingest", "index", "remove", "compact",
    ]  # fmt: skip
    assert "add 4 documents" in log
    assert name not in log


def test_an_append_killed_with_minus_nine_goes_on(folder, bytes_of):
    root = folder / "young.knnstore"
    command = (*INGEST, "--store", "young", "--holdout", "0")
    moments = [
        (root / "segments/0001/commits/documents.json").exists,
        lambda: len(list(root.glob("segments/0001/commits/keys-*.json"))) >= 3,
    ]
    assert all(killed_when(moment, folder, *command) for moment in moments)
    report = answered(folder, *command)
    assert report["tasks_kept"] >= 3
    typed(folder, "index", "--store", "young", "--nlist", "16")
    assert bytes_of(root) == bytes_of(folder / "s.knnstore")


def test_a_compaction_killed_with_minus_nine_goes_on(grown, folder, bytes_of):
    shutil.copytree(folder / "s.knnstore", folder / "t.knnstore")
    typed(folder, "compact", "--store", "t")
    root = folder / "s.knnstore"
    moments = [
        lambda: len(list(root.glob("segments/0002/commits/keys-*.json"))) >= 3,
        lambda: len(list(root.glob("index/*/lists/0002/commits/lists-*.json"))) >= 2,
    ]
    for moment in moments:
        assert killed_when(moment, folder, "compact", "--store", "s")
        assert len(Datastore(root).segments) == 2
    typed(folder, "compact", "--store", "s")
    assert bytes_of(root) == bytes_of(folder / "t.knnstore")


def test_merging_two_parts_gives_the_whole(grown, folder):
    typed(folder, "subset", "s", "--documents", grown[1], "--into", "one")
    merged = answered(folder, "merge", "fewer", "one", "--into", "both")
    assert merged["doubles"] == 0
    assert merged["rows"] == Datastore(folder / "whole.knnstore").rows
    assert perplexity(folder, "both") == pytest.approx(perplexity(folder, "whole"), rel=5e-5)
    half = answered(folder, "score", "--store", "s", *FIXED, "--only", "50%")
    assert np.isclose(half["keys"], merged["rows"] / 2, rtol=0.2)
