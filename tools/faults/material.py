"""A tiny LM, a tiny corpus, and commands on them in this process: real stages at a thousandth of the usual size."""

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from click.testing import CliRunner
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from knnstore.cli import main
from knnstore.files import encode_json, unseal_json
from knnstore.lm.spec import SHIPPED_MODELS

# fmt: off
WORDS = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "every", "file", "for", "from", "had", "has", "he",
    "her", "his", "in", "is", "it", "keeps", "kill", "last", "lives", "memory", "must", "not", "of", "on", "once",
    "one", "only", "or", "other", "power", "read", "row", "said", "she", "so", "store", "that", "the", "their",
    "then", "there", "they", "this", "time", "to", "token", "was", "were", "what", "when", "which", "who", "will",
    "with", "without", "word", "writes", "you",
]
# fmt: on
STORE = "books.knnstore"
INGEST = ("ingest", "--corpus", "books/", "--workers", "0", "--chunk-rows", "256", "--context", "32")
INDEX = ("index", "--store", "books", "--nlist", "8", "--pq-bytes", "4")


def make_model(folder: Path, layers: int = 1, width: int = 16, positions: int = 64) -> Path:
    """Make a small LM with reproducible random weights, and the tokenizer of the shipped LM."""
    torch.manual_seed(0)
    sizes = {"n_positions": positions, "n_embd": width, "n_layer": layers, "n_head": 2}
    config = GPT2Config(vocab_size=8192, bos_token_id=0, eos_token_id=0, **sizes)
    GPT2LMHeadModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED_MODELS / "wiki-lm").save_pretrained(folder)
    return folder


def make_corpus(folder: Path, documents: int = 6, words: int = 220, seed: int = 0) -> Path:
    """Write text files of random words."""
    generator = random.Random(seed)
    folder.mkdir()
    for number in range(documents):
        (folder / f"{number}.txt").write_text(" ".join(generator.choices(WORDS, k=words)) + ".\n")
    return folder


def grow_corpus(folder: Path) -> None:
    """Replace the corpus of the folder by a copy with one changed and two new documents."""
    if (folder / "books").is_symlink():
        linked = (folder / "books").resolve()
        (folder / "books").unlink()
        shutil.copytree(linked, folder / "books")
    make_corpus(folder / "more", documents=3, words=150, seed=1)
    for number, name in enumerate(("1.txt", "6.txt", "7.txt")):
        (folder / "more" / f"{number}.txt").replace(folder / "books" / name)
    (folder / "more").rmdir()


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a command in this process, in ``folder`` and with the tiny LM; return exit code and output."""
    before, model = Path.cwd(), os.environ.get("KNNSTORE_MODEL")
    os.chdir(folder)
    os.environ["KNNSTORE_MODEL"] = str((folder / "lm").resolve())
    try:
        done = CliRunner().invoke(main, list(arguments))
    finally:
        os.chdir(before)
        if model is None:
            del os.environ["KNNSTORE_MODEL"]
        else:
            os.environ["KNNSTORE_MODEL"] = model
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def make_store(folder: Path, commands: Sequence[tuple[str, ...]] = (INGEST, INDEX)) -> Path:
    """Make a folder with ``lm/``, ``books/`` and a store by the commands; return the store."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "lm")
    make_corpus(folder / "books")
    for command in commands:
        code, output = run(folder, *command)
        if code:
            raise RuntimeError(output)
    return folder / STORE


def make_lived_store(folder: Path) -> Path:
    """Make a store with a history: appended to, documents replaced and removed, an exact-match memory, tuned."""
    make_store(folder)
    grow_corpus(folder)
    later = (
        INGEST,
        INDEX,
        ("remove", "--store", "books", "--document", "books/3.txt"),
        ("suffixes", "--store", "books"),
        ("score", "--store", "books", "--k", "8", "--save-neighbours", "neighbours.parquet"),
        ("tune", "neighbours.parquet", "--store", "books"),
    )
    for command in later:
        code, output = run(folder, *command)
        if code:
            raise RuntimeError(output)
    return folder / STORE


def copy_of(folder: Path, to: Path) -> Path:
    """Copy such a folder, with links to its LM and corpus."""
    to.mkdir()
    for path in sorted(folder.iterdir()):
        if path.name in ("lm", "books"):
            (to / path.name).symlink_to(path.resolve())
        elif path.is_dir():
            shutil.copytree(path, to / path.name)
        elif path.name != "found":
            shutil.copy(path, to / path.name)
    existing = [path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()]
    (to / "found").write_text("\n".join(existing))  # files that a command needn't write
    return to


def bytes_of(root: Path) -> dict[str, bytes]:
    """Return every file of a store by name, except its lock, and without the times in the log."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(root).as_posix(): _timeless(path) for path in files}


def _timeless(path: Path) -> bytes:
    data = path.read_bytes()
    return encode_json(unseal_json(data) | {"when": ""}) if path.match("log/*.json") else data


def differences(actual: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Return the names of files that differ or are missing in one of the two."""
    return sorted(name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name))


def spoil(path: Path) -> None:
    """Change several bits in the middle of a file."""
    data = bytearray(path.read_bytes())
    middle = slice(len(data) // 3, len(data) // 3 + 9)
    data[middle] = bytes(byte ^ 0xA5 for byte in data[middle])
    path.write_bytes(data)
