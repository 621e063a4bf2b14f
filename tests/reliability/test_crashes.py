"""Killed, torn or without power at any durable operation: what is marked done is there, and a second run ends alike."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from faults.crashes import COMMANDS
from faults.forking import in_process
from faults.layer import Layer

import knnstore.datastore.commits
from knnstore.datastore.commits import DONE, CommitLog, file_damage
from knnstore.datastore.sweeping import remove_tree
from knnstore.errors import ResourceError
from knnstore.files import flush, make_folder, write_json


def work(root):
    """Two tasks of a job, as ingest does them: folders, files, a record; then the manifest."""
    log = CommitLog(root / "segments" / "0000" / "commits", root / "segments" / "0000", "f" * 64)
    make_folder(root)
    log.prepare()
    for number in range(2):
        folder = log.root / "keys" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rows").write_bytes(bytes(range(64)) * (number + 1))
        log.commit(f"keys-{number:06d}", [folder / "rows"])
    write_json(root / "knnstore.json", {"segments": ["0000"]})


def broken_promises(root):
    """What is marked done and isn't there."""
    log = CommitLog(root / "segments" / "0000" / "commits", root / "segments" / "0000", "f" * 64)
    told = [f"{file.path} {damage}" for c in log.all() for file in c.files if (damage := file_damage(log.root, file))]
    if (root / "knnstore.json").exists() and len(list(log.all())) != 2:
        told.append("the manifest is there and a record isn't")
    return told


def power_cuts(tmp_path, seeds):
    """Cut the power at every operation of ``work``; the promises that were broken."""
    operations = in_process(lambda: run(tmp_path / "count", 0, 0))
    told = []
    for target in range(1, operations + 1):
        for seed in range(seeds):
            place = tmp_path / f"{target}-{seed}"
            assert in_process(lambda place=place, target=target, seed=seed: run(place, target, seed)) is None
            told += broken_promises(place / "after" / "s")
    return operations, told


def run(place, target, seed):
    place.mkdir()
    layer = Layer(place / "s", target, "power", seed, place / "after")
    with layer.installed():
        work(place / "s")
    return layer.count


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_after_a_power_cut_at_any_operation_what_is_marked_done_is_there(quick):
    operations, told = power_cuts(quick, seeds=2)
    assert operations > 25
    assert told == []


@pytest.mark.parametrize("left_out", [Path.is_file, Path.is_dir], ids=["files", "folders"])
def test_without_a_sync_the_same_cuts_break_promises(quick, monkeypatch, left_out):
    monkeypatch.setattr(
        knnstore.datastore.commits, "flush", lambda *paths: flush(*(path for path in paths if not left_out(path)))
    )
    _, told = power_cuts(quick, seeds=1)
    assert told != []  # else the test above would prove nothing


def test_the_process_is_killed_at_the_operation_asked_for(quick):
    counts = []
    for target in (1, 4):
        (quick / str(target)).mkdir()
        layer = Layer(quick / str(target) / "s", target, "kill", 0, quick / "after")

        def killed(layer=layer):
            with layer.installed():
                work(layer.root)
            os._exit(3)

        assert in_process(killed) is None
        counts.append(len(list((quick / str(target)).rglob("*"))))
    assert counts[0] == 0 < counts[1]


@pytest.mark.parametrize("mode", ["full", "broken"])
def test_a_disk_that_fails_at_any_operation_is_one_sentence(quick, mode):
    def told(target):
        layer = Layer(quick / f"{mode}{target}" / "s", target, mode, 0, quick / "after")
        layer.root.parent.mkdir()
        try:
            with layer.installed():
                log = CommitLog(layer.root / "commits", layer.root, "f" * 64)
                log.prepare()
                write_json(layer.root / "a.json", {"a": 1})
        except ResourceError as error:
            return str(error)
        return ""

    sentences = [told(target) for target in range(1, 12)]
    expected = "make room and run the same command again" if mode == "full" else "Input/output error"
    assert any(expected in sentence for sentence in sentences)
    assert all(sentence == "" or "can't" in sentence or "no space" in sentence for sentence in sentences)


def test_a_removal_that_is_cut_short_anywhere_leaves_nothing_that_is_marked_done(quick):
    work(quick / "made")
    part, mark = quick / "made" / "segments" / "0000", Path("commits", f"{DONE}.json")
    CommitLog(part / "commits", part, "f" * 64).commit(DONE, [])
    marked = []
    for target in range(1, 30):
        layer = Layer(shutil.copytree(part, quick / f"{target}"), target, "read-only", 0, quick / "after")
        with layer.installed(), suppress(ResourceError):
            remove_tree(layer.root)
        if not layer.root.exists():
            break
        marked += [target] if (layer.root / mark).exists() else []
    assert marked == [1]
    assert target > 10


def test_the_documentation_names_every_command_that_is_crashed(repository):
    text = (repository / "docs" / "reliability.md").read_text()
    sentence = text[text.index("The commands are ") : text.index("and the cases are spread")]
    assert [name for name in COMMANDS if name not in sentence] == []


@pytest.mark.slow
def test_commands_that_crashed_anywhere_end_like_those_that_did_not(tortured):
    tortured("crashes", cases=18, seed=7)
