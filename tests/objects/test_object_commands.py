"""Commands that read, derive and exchange stores say the same of a bucket as of a disk, and leave the same bytes."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from s3_servers import BUCKET, copied, objects_of

from knnstore.cli.commands import main

# {at}: where the stores are; {out}: a folder for what is written beside them. Each finds what those before it left.
COMMANDS = """
info --store {at}a --json
neighbours --store {at}a --json --k 5 TEXT
generate --store {at}a --json --max-new-tokens 3 --prompt TEXT
attribute --store {at}a --json --text text/0.txt --k 50
score --store {at}a --text text --k 64 --save-neighbours {out}/saved.parquet --report {out}/page.html
suffixes --store {at}a --json
tune --store {at}a {out}/saved.parquet --json
export --store {at}a --out {out} --json
export --store {at}a --out {out} --to parquet --json
export --store {at}a --out {out} --to faiss --json
import --keys keys.npy --vals values.npy --dim 32 --store {at}imported --json
import --keys keys.npy --vals values.npy --dim 32 --store {at}imported --overwrite --json
merge {at}a {at}b --into {at}both --json
subset {at}both --into {at}half --sample 50% --json
verify --store {at}a --json
repair --store {at}a --json
ingest --store {at}a --corpus text --workers 0 --json
index --store {at}a --json
remove --store {at}a --document text/0.txt --json
restore --store {at}a --json
log --store {at}a
remove --store {at}a --document text/0.txt --now --json
compact --store {at}a --json
"""
# What was before stays in a bucket for a day, and the log tells the time.
UNEQUAL = ("log", "compact", "remove --store {at}a --document text/0.txt --now")
SPEED = re.compile(r'"\w+_per_second": [0-9.]+')
ELSEWHERE = {"stores": "lists folders", "demo": "writes a folder", "explore": "serves", "evaluate": "takes tasks"}


def test_no_command_is_left_out():
    assert {command.split()[0] for command in COMMANDS.strip().splitlines()} | ELSEWHERE.keys() == main.commands.keys()


@pytest.fixture
def places(two_stores, tmp_path, monkeypatch, s3, client):
    """Copies of two stores on this disk and in the bucket, and the folder with the text as the current one."""
    import shutil

    for name in ("a", "b"):
        shutil.copytree(two_stores / f"{name}.knnstore", tmp_path / f"{name}.knnstore")
        copied(client, tmp_path / f"{name}.knnstore", f"commands/{name}.knnstore")
    shutil.copytree(two_stores / "text", tmp_path / "text")
    np.random.default_rng(0).normal(size=(300, 32)).astype(np.float16).tofile(tmp_path / "keys.npy")
    np.arange(300).tofile(tmp_path / "values.npy")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(command, at, out):
    words = [word.format(at=at, out=out) for word in command.split()]
    done = CliRunner().invoke(main, [word if word != "TEXT" else "the value of the" for word in words])
    assert done.exit_code == 0, (command, done.stderr, done.exception)
    text = done.stdout.replace(at, "") if at else done.stdout
    return text.replace(f"{out}/", "OUT/").replace(f'"{out}"', '"OUT"')


def test_a_bucket_answers_every_command_as_a_disk_does(places, client, bytes_of):
    for place in ("disk", "bucket"):
        (places / place).mkdir()
    for command in COMMANDS.strip().splitlines():
        here, there = said(command, "", "disk"), said(command, f"s3://{BUCKET}/commands/", "bucket")
        if command.startswith("score"):  # it tells how long it took
            assert here.splitlines()[:3] == there.splitlines()[:3]
        elif not command.startswith(UNEQUAL):
            assert SPEED.sub("", here) == SPEED.sub("", there), command
            assert "--json" not in command or json.loads(here)
    for name in ("a", "both", "half"):  # all but the log, which tells who and when
        found = objects_of(client, f"commands/{name}.knnstore")
        found = {name: data for name, data in found.items() if name != ".lock" and "log/" not in name}
        expected = bytes_of(places / f"{name}.knnstore")
        assert {path: found.get(path) for path in expected} == expected, name
    written = {path.name: path.read_bytes() for path in (places / "disk").iterdir() if path.suffix != ".html"}
    for name, data in written.items():
        if name != "saved.parquet":  # it names the store
            assert (places / "bucket" / name).read_bytes() == data, name
