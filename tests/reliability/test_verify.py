"""Every byte of a store is under a checksum: verify finds what changed, and says where and what it can be made from."""

import json
import os
import shutil
from contextlib import contextmanager

import pytest
from faults.flips import flip_in
from faults.material import INGEST, bytes_of, copy_of, differences, grow_corpus, run

from knnstore.datastore import sweeping
from knnstore.datastore.edits import Edit
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.store import Datastore
from knnstore.datastore.takedowns import load_takedowns
from knnstore.errors import CorruptStoreError, LockedError
from knnstore.files import files_of, load_json, seal_json, unseal_json, write_json
from knnstore.ingestion import making
from knnstore.progress import Reporter
from knnstore.verification.bitflips import corrected
from knnstore.verification.check import verify


def flip(path, bit=None):
    data = bytearray(path.read_bytes())
    bit = 4 * len(data) if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def only_damage(root):
    (damage,) = verify(root).damages
    return damage


def test_a_store_as_it_was_made_is_intact(root):
    report = verify(root)
    assert report.intact
    assert report.finished
    assert report.files == sum(path.is_file() for path in root.rglob("*")) - 1  # all but the lock


def test_any_flipped_bit_is_found_in_whatever_file_and_no_search_answers_from_it(lived, tmp_path):
    outcome = flip_in(lived / "books.knnstore", 160, seed="1", folder=tmp_path)
    assert (outcome.tried, outcome.lost, outcome.silent, outcome.told) == (160, 0, 0, [])
    assert outcome.facts["files"] < 160  # so each of them had its turn
    assert outcome.counts["rebuildable"] == 160


def test_a_store_with_a_past_is_intact_too(lived):
    report = verify(lived / "books.knnstore")
    assert (report.damages, report.finished) == ((), True)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("log/000005.parquet", "checksum"),
        ("removed/*.parquet", "checksum"),
        ("suffixes/*/order/c/0", "values"),
        ("suffixes/*/stream/zarr.json", "values"),
        ("suffixes/*/suffixes.json", "checksum"),
        ("tuned.json", "checksum"),
    ],
)
def test_what_a_past_leaves_behind_is_verified_and_made_again(lived, tmp_path, name, source):
    here = copy_of(lived, tmp_path / "here")
    root = here / "books.knnstore"
    path = next(root.glob(name))
    flip(path)
    assert (only_damage(root).path, only_damage(root).source) == (path.relative_to(root).as_posix(), source)
    code, told = run(here, "repair")
    assert (code, verify(root).intact) == (0, True), told
    assert differences(bytes_of(root), bytes_of(lived / "books.knnstore")) == []


@pytest.mark.parametrize("name", ["log/000002.json", "log/000005.parquet", "suffixes/*/order/c/0"])
def test_a_part_of_the_past_that_is_missing_is_damage(lived, tmp_path, name):
    root = copy_of(lived, tmp_path / "here") / "books.knnstore"
    next(root.glob(name)).unlink()
    assert only_damage(root).problem == "is missing"


def test_the_texts_of_a_removal_that_was_cut_short_are_no_damage_and_leave_with_the_next_change(here):
    root = here / "books.knnstore"
    with pytest.MonkeyPatch.context() as cut:
        cut.setattr("knnstore.living.remove.save_removed", lambda *_: (_ for _ in ()).throw(InterruptedError()))
        with pytest.raises(InterruptedError):
            run(here, "remove", "--document", "books/2.txt")
    report = verify(root)
    assert (report.intact, report.leftovers) == (True, ("log/000003.parquet",))
    assert run(here, "remove", "--document", "books/3.txt")[0] == 0
    assert len(load_takedowns(root)) == 1
    assert verify(root).leftovers == ()


@pytest.mark.parametrize(
    ("name", "rows", "source"),
    [
        ("segments/0000/keys/c/1/0", (256, 512), "copy or LM"),
        ("segments/0000/values/c/0", None, "copy or corpus"),
        ("segments/0000/heldout/c/0", None, "corpus"),
        ("segments/0000/key_scales/c/0", (0, 16), "LM"),
        ("segments/0000/documents.parquet", None, "corpus"),
        ("segments/0000/keys/zarr.json", None, "plan"),
        ("segments/0000/segment.json", None, "checksum"),
        ("segments/0000/commits/keys-000001.json", None, "checksum"),
        ("index/*/lists/0000/codes/c/1/0", (256, 512), "keys"),
        ("index/*/quantizer/centroids/c/0/0", (0, 8), "keys"),
        ("index/*/lists/0000/check.json", None, "checksum"),
    ],
)
def test_the_damage_is_named_with_its_rows_and_what_it_can_be_made_from(root, name, rows, source):
    (path,) = root.glob(name)
    flip(path)
    damage = only_damage(root)
    assert (damage.path, damage.source) == (path.relative_to(root).as_posix(), source)
    assert rows is None or damage.rows == rows
    assert (damage.chunk is None) == ("/c/" not in name)


def test_chunks_that_changed_places_are_found_though_each_is_whole(root):
    one, other = (root / "segments/0000/keys/c" / str(chunk) / "0" for chunk in (1, 2))
    one.rename(root / "aside")
    other.rename(one)
    (root / "aside").rename(other)
    report = verify(root)
    assert {damage.path for damage in report.damages} == {"segments/0000/keys/c/1/0", "segments/0000/keys/c/2/0"}


@pytest.mark.parametrize(
    "name", ["segments/0000/keys/c/2/0", "index/*/commits/quantizer.json", "segments/0000/commits/documents.json"]
)
def test_what_is_missing_is_damage(root, name):
    (path,) = root.glob(name)
    path.unlink()
    assert not verify(root).intact


def test_a_chunk_that_went_with_its_record_is_missed(root):
    (root / "segments/0000/keys/c/2/0").unlink()
    (root / "segments/0000/commits/keys-000002.json").unlink()
    damage = only_damage(root)
    assert (damage.path, damage.problem, damage.rows) == ("segments/0000/keys/c/2/0", "is missing", (512, 768))


def test_a_file_that_nobody_wrote_is_damage(root):
    (root / "segments/0000/extra.bin").write_bytes(b"x")
    assert only_damage(root).problem == "is in no commit record"


def test_leftovers_of_a_killed_run_are_told_and_are_no_damage(root):
    (root / "segments/0000/keys/c/0/0.17.partial").write_bytes(b"x")
    report = verify(root)
    assert report.intact
    assert report.leftovers == ("segments/0000/keys/c/0/0.17.partial",)


def test_the_command_names_the_damage_and_ends_with_1(here):
    code, told = run(here, "verify")
    assert (code, "all checksums match" in told) == (0, True)
    flip(here / "books.knnstore/segments/0000/keys/c/1/0")
    code, told = run(here, "verify", "--store", "books")
    assert code == 1
    assert "damaged   segments/0000/keys/c/1/0 (chunk 1, rows 256 to 512)" in told
    assert "knnstore repair --store books" in told
    code, told = run(here, "verify", "--json", "--quiet")
    assert code == 1
    (damage,) = json.loads(told)["damages"]
    assert (damage["path"], damage["rows"]) == ("segments/0000/keys/c/1/0", [256, 512])


def test_a_store_that_is_none_is_said_to_be_none(here):
    assert run(here, "verify", "--store", "nowhere")[0] == 2


def test_json_whose_bytes_are_not_those_of_its_checksum_is_refused(root):
    path = root / "knnstore.json"
    for change in (lambda data: data.replace(b' "index"', b'  "index"'), lambda data: data.replace(b": 16,", b": 17,")):
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        with pytest.raises(CorruptStoreError, match="damaged"):
            Datastore(root)
        path.write_bytes(whole)


def test_json_without_a_checksum_is_read_and_verify_says_so(root):
    path = root / "knnstore.json"
    path.write_text(json.dumps(load_json(path)))
    assert Datastore(root).rows > 0
    assert only_damage(root).problem == "has no checksum"


def test_one_flipped_bit_of_sealed_json_is_put_back_and_two_are_not():
    data = seal_json({"name": "books", "rows": 17, "z": None})
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert corrected(bytes(damaged)) == data
    damaged[3] ^= 2
    assert corrected(bytes(damaged)) is None
    assert unseal_json(data) == {"name": "books", "rows": 17, "z": None}


def test_a_copy_of_a_store_is_the_store(root, tmp_path):
    shutil.copytree(root, tmp_path / "other.knnstore")
    assert verify(tmp_path / "other.knnstore").intact


def test_a_record_changed_on_purpose_with_its_checksum_is_told_by_its_plan(root):
    path = root / "segments/0000/commits/keys-000001.json"
    write_json(path, load_json(path) | {"fingerprint": "0" * 64})
    problems = {damage.path: damage.problem for damage in verify(root).damages}
    assert "belongs to another plan" in problems["segments/0000/commits/keys-000001.json"]
    assert problems["segments/0000/keys/c/1/0"] == "is in no commit record"  # of this plan


@pytest.mark.parametrize("point", ["assemble", "publish", "remove_tree"])
def test_what_a_killed_append_left_is_no_damage_and_the_same_ingest_goes_on(here, monkeypatch, point):
    """Killed before its tokens are assembled, before its state is published, and before it cleans up."""
    grow_corpus(here)
    root = here / "books.knnstore"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr({"assemble": making, "publish": Edit, "remove_tree": sweeping}[point], point, killed)
        assert run(here, *INGEST)[0] == 130
    (root / "segments/0001/keys").mkdir(exist_ok=True, parents=True)
    (root / "segments/0001/keys/c7").write_bytes(b"begun") if point != "remove_tree" else None
    report = verify(root)
    assert (report.damages, report.finished) == ((), True)
    assert report.leftovers
    code, told = run(here, "repair")
    assert (code, "nothing is damaged" in told) == (0, True)
    code, told = run(here, *INGEST)
    assert code == 0, told
    assert len(load_manifest(root).segments) == 2
    (root / "segments/0001/keys/c7").unlink(missing_ok=True)
    assert verify(root).leftovers == ()


@pytest.mark.parametrize(
    "name", ["keys/c/1/0", "values/c/0", "key_scales/c/0", "documents.parquet", "commits/keys-000001.json"]
)
def test_what_an_interrupted_ingest_left_is_verified_before_it_is_gone_on_with(here, made, monkeypatch, name):
    root = here / "books.knnstore"
    shutil.rmtree(root)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Edit, "publish", killed)
        assert run(here, *INGEST)[0] == 130
    flip(root / "segments/0000" / name)
    code, told = run(here, *INGEST)
    assert (code, "it is rebuilt" in told) == (0, True), told
    assert verify(root).intact
    one = bytes_of(root / "segments")
    assert differences(one, bytes_of(made / "books.knnstore" / "segments")) == []


def test_damage_of_the_exact_match_memory_is_told_with_what_it_is_made_again_from(lived, tmp_path):
    here = copy_of(lived, tmp_path / "here")
    flip(next((here / "books.knnstore").glob("suffixes/*/order/c/0")))
    code, told = run(here, "verify")
    assert (code, "can be rebuilt from the stored tokens" in told) == (1, True), told


def test_a_past_segment_whose_removal_was_cut_short_is_no_damage_and_the_next_compaction_removes_it(
    lived, tmp_path, monkeypatch
):
    here = copy_of(lived, tmp_path / "here")
    root = here / "books.knnstore"

    def killed(*_):
        shutil.rmtree(root / "segments/0000/commits")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Edit, "sweep", killed)
        assert run(here, "compact")[0] == 130
    report = verify(root)
    assert report.damages == ()
    assert "segments/0000/segment.json" in report.leftovers
    code, output = run(here, "compact")
    assert code == 0, output
    assert not (root / "segments/0000").exists()
    assert verify(root).leftovers == ()


class Meanwhile(Reporter):
    """Runs commands in the folder ``here``: each on the first byte that is read of another pass."""

    def __init__(self, here, *commands):
        self._here, self._commands = here, list(commands)
        self.said = []

    def say(self, text):
        self.said.append(text)

    @contextmanager
    def bar(self, stage, total, unit, done=0):
        def advance(count):
            if self._commands:
                assert run(self._here, *self._commands.pop(0))[0] == 0

        yield advance


def test_what_another_command_publishes_meanwhile_is_not_called_damage(here):
    root = here / "books.knnstore"
    assert run(here, "remove", "--document", "books/2.txt")[0] == 0
    reporter = Meanwhile(here, ("compact",), ("remove", "--document", "books/3.txt"))
    report = verify(root, reporter)
    assert (report.damages, report.finished) == ((), True)
    assert reporter.said == ["verify    the store has changed in the meantime: reading the new files"]
    assert report.files == verify(root).files


def test_damage_is_found_while_another_command_publishes(here):
    root = here / "books.knnstore"
    flip(root / "segments/0000/keys/c/2/0")
    report = verify(root, Meanwhile(here, ("remove", "--document", "books/2.txt")))
    assert [damage.path for damage in report.damages] == ["segments/0000/keys/c/2/0"]


def test_a_store_that_never_stays_the_same_is_refused(root, monkeypatch):
    flip(root / "segments/0000/keys/c/2/0")
    states = iter(range(100))
    monkeypatch.setattr("knnstore.verification.check.version_of", lambda _: next(states))
    with pytest.raises(LockedError, match="10 times"):
        verify(root)


def test_a_folder_that_goes_while_a_store_is_listed_is_passed_over(root, monkeypatch):
    scandir = os.scandir

    def gone(folder):
        if folder.name == "values":
            raise FileNotFoundError(folder)
        return scandir(folder)

    monkeypatch.setattr("knnstore.files.local.os.scandir", gone)
    names = {path.relative_to(root).parts[2] for path, *_ in files_of(root).entries(root) if "segments" in path.parts}
    assert {"keys", "segment.json"} <= names
    assert "values" not in names
