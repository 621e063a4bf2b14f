"""A store that grows and shrinks by the commands as typed: real LM, real text, and ``kill -9``."""

import getpass
import re
import shutil

import numpy as np
import pytest
from killing import kill_when
from living_bytes import everything_in
from typed import answered, typed

from knnstore.datastore.store import Datastore

pytestmark = pytest.mark.slow

INGEST = ("ingest", "--corpus", "books", "--chunk-rows", "256", "--context", "128", "--workers", "0")
# the same key from the same text: int8 keys depend on their segment's scales, bfloat16 ones on a batch's padding
INGEST += ("--dtype", "float32", "--key-dtype", "float16")
FIXED = ("--exact", "--k", "1024", "--lambda", "0.3", "--temperature", "20", "--text", "text.txt")


def perplexity(folder, store, *arguments):
    return answered(folder, "score", "--store", store, *FIXED, *arguments)["knn"]["perplexity"]


@pytest.fixture(scope="module")
def grown(tiny_corpus, tmp_path_factory):
    """A folder with stores of seven documents, an eighth in ``text.txt`` to score: ``s`` got the six in ``books/``, in
    two parts, ``last`` the seventh, ``whole`` all at once, ``fewer`` all but one. Also the names of that one, which
    ``s`` has, and of the seventh.
    """
    folder = tmp_path_factory.mktemp("grown")
    *documents, text = sorted(tiny_corpus.iterdir())
    shutil.copy(text, folder / "text.txt")

    def ingest(store, some):
        shutil.rmtree(folder / "books", ignore_errors=True)
        (folder / "books").mkdir()
        for path in some:
            shutil.copy(path, folder / "books")
        typed(folder, *INGEST, "--store", store, "--holdout", "0")

    ingest("last", documents[6:])
    ingest("fewer", documents[:2] + documents[3:])
    ingest("whole", documents)
    ingest("s", documents[:4])
    typed(folder, "index", "--store", "s", "--nlist", "16")
    shutil.copytree(folder / "s.knnstore", folder / "young.knnstore")
    ingest("s", documents[:6])
    typed(folder, "index", "--store", "s", "--nlist", "16")
    return folder, f"books/{documents[2].name}", f"books/{documents[6].name}"


@pytest.fixture
def folder(grown, tmp_path):
    shutil.copytree(grown[0], tmp_path / "work")
    return tmp_path / "work"


def test_a_store_that_grew_shrank_was_compacted_and_merged_has_the_perplexity_of_one_made_at_once(grown, folder):
    _, name, last = grown
    whole, fewer = perplexity(folder, "whole"), perplexity(folder, "fewer")
    assert fewer != pytest.approx(whole, rel=5e-4)
    assert perplexity(folder, "whole", "--without", name) == pytest.approx(fewer, rel=5e-5)
    assert perplexity(folder, "s") == pytest.approx(perplexity(folder, "whole", "--without", last), rel=5e-5)
    report = answered(folder, "remove", "--store", "s", "--document", name)
    assert (report["documents"], report["names"]) == (1, [name])
    neither = perplexity(folder, "whole", "--without", last, "--without", name)
    assert perplexity(folder, "s") == pytest.approx(neither, rel=5e-5)

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
    assert len(after) < len(before)
    typed(folder, "merge", "s", "last", "--into", "both")
    assert perplexity(folder, "both") == pytest.approx(fewer, rel=5e-5)
    result = answered(folder, "score", "--store", "both", "--nprobe", "16", *FIXED[1:])
    assert result["knn"]["perplexity"] == pytest.approx(fewer, rel=5e-4)
    assert result["keys"] == Datastore(folder / "fewer.knnstore").rows

    log = typed(folder, "log", "--store", "s")
    assert [line.split(":")[2].split("  ")[-1] for line in log.splitlines()[1:7]] == [
        "ingest", "index", "ingest", "index", "remove", "compact",
    ]  # fmt: skip
    assert "add 4 documents" in log
    assert all(
        re.match(rf" *\d+  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  {getpass.getuser()}  ", line)
        for line in log.splitlines()[1:7]
    )
    assert name not in log


def test_an_append_killed_with_minus_nine_goes_on(folder, bytes_of):
    root = folder / "young.knnstore"
    command = (*INGEST, "--store", "young", "--holdout", "0")
    moments = [
        (root / "segments/0001/commits/documents.json").exists,
        lambda: len(list(root.glob("segments/0001/commits/keys-*.json"))) >= 3,
    ]
    assert all(kill_when(moment, folder, command) for moment in moments)
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
        assert kill_when(moment, folder, ("compact", "--store", "s"))
        assert len(Datastore(root).segments) == 2
    typed(folder, "compact", "--store", "s")
    assert bytes_of(root) == bytes_of(folder / "t.knnstore")


def test_a_takedown_killed_with_minus_nine_goes_on_by_the_same_command(grown, folder, bytes_of):
    command = ("remove", "--store", "s", "--document", grown[1], "--now")
    shutil.copytree(folder / "s.knnstore", folder / "t.knnstore")
    typed(folder, "remove", "--store", "t", "--document", grown[1], "--now")
    root = folder / "s.knnstore"
    moments = [
        lambda: Datastore(root).manifest.removed is not None,
        lambda: len(list(root.glob("index/*/commits/quantizer.json"))) == 2,  # made anew of what is left
        lambda: len(list(root.glob("index/*/lists/0002/commits/lists-*.json"))) >= 2,
    ]
    assert all(kill_when(moment, folder, command) for moment in moments)
    report = answered(folder, *command)
    assert report["names"] == [grown[1]]
    assert bytes_of(root) == bytes_of(folder / "t.knnstore")
    assert grown[1].encode() not in everything_in(root)
    assert [line.split(":")[2].split("  ")[-1] for line in typed(folder, "log", "--store", "s").splitlines()[-2:]] == [
        "remove", "compact",
    ]  # fmt: skip


def test_a_merge_killed_with_minus_nine_goes_on_and_keeps_the_index(grown, folder, bytes_of):
    command = ("merge", "s", "fewer", "--into", "both")
    typed(folder, *command[:4], "whole-merge")
    root = folder / "both.knnstore"
    moments = [
        lambda: len(list(root.glob("segments/0000/commits/keys-*.json"))) >= 3,
        lambda: len(list(root.glob("index/*/runs/*/commits/*.json"))) >= 1,
        lambda: len(list(root.glob("index/*/lists/0000/commits/lists-*.json"))) >= 2,
    ]
    assert all(kill_when(moment, folder, command) for moment in moments)
    report = answered(folder, *command)
    assert report["index"]["rows"] == report["rows"]
    assert bytes_of(root) == bytes_of(folder / "whole-merge.knnstore")
    every_list = answered(folder, "score", "--store", "both", "--nprobe", "16", *FIXED[1:])["knn"]["perplexity"]
    assert every_list == pytest.approx(perplexity(folder, "whole"), rel=5e-4)


def test_merging_two_parts_gives_the_whole(grown, folder):
    typed(folder, "subset", "s", "--documents", grown[1], "--into", "one")
    merged = answered(folder, "merge", "fewer", "one", "--into", "both")
    assert merged["doubles"] == 0
    assert merged["rows"] == Datastore(folder / "whole.knnstore").rows
    assert perplexity(folder, "both") == pytest.approx(perplexity(folder, "whole"), rel=5e-5)
    half = answered(folder, "score", "--store", "whole", *FIXED, "--only", "50%")
    assert np.isclose(half["keys"], merged["rows"] / 2, rtol=0.2)
