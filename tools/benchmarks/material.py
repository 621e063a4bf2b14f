"""Material of the benchmarks: text, prepared stores, windows of a store, the bare LM."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.measuring import Settings
from knnstore.datastore.store import Datastore
from knnstore.demo_corpus import write_corpus
from knnstore.errors import UsageError
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.ingestion.tasks import KeyTask, write_keys
from knnstore.lm.forward import padded_ids
from knnstore.lm.loading import DTYPES
from knnstore.lm.spec import resolve_model
from knnstore.scheduling import Job, SerialRunner, Task
from knnstore.windows import Windows

BATCH_TOKENS = 4096  # per forward pass on a CPU, as in ingest and score
_BYTES_A_TOKEN = 3


def text_folder(settings: Settings, work: Path, tokens: int) -> Path:
    """Return a folder with about ``tokens`` tokens: of Python's documentation, or the beginning of ``--corpus``."""
    folder, size = work / f"text-{tokens}", tokens * _BYTES_A_TOKEN
    if settings.corpus is None:
        write_corpus(folder, size)
        return folder
    folder.mkdir()
    for path in sorted(settings.corpus.rglob("*.txt")):
        with path.open("rb") as file:
            text = file.read(size).decode("utf-8", "ignore")
        name = path.relative_to(settings.corpus).as_posix().replace("/", "-")
        (folder / name).write_text(text, encoding="utf-8")
        size -= len(text.encode())
        if size <= 0:
            return folder
    if not any(folder.iterdir()):
        raise UsageError(f"--corpus {settings.corpus} holds no .txt files")
    return folder


class KeepingKeyTasks(SerialRunner):
    """Runs all tasks except those that write keys, which it collects for measurements."""

    def __init__(self) -> None:
        self.kept: list[KeyTask] = []

    def run(self, function: Callable[[Task], Any], tasks: Iterable[Task]) -> Iterator[Any]:
        if function is not write_keys:
            yield from super().run(function, tasks)
            return
        self.kept += [task for task in tasks if isinstance(task, KeyTask)]


def ingested(settings: Settings, text: Path, store: Path, **options: Any) -> Datastore:
    """Make the store of a text in this process."""
    ingest(IngestOptions(corpus=(str(text),), store=str(store), model=settings.model, **options), Job())
    return Datastore(store.with_name(f"{store.name}.knnstore"))


def bare_model(model: str, dtype: str) -> Any:
    """Return the LM from ``from_pretrained``."""
    return AutoModelForCausalLM.from_pretrained(resolve_model(model), dtype=DTYPES[dtype]).eval()


def input_batches(windows: Windows, tokens: Any, bos: int) -> list[tuple[Any, Any]]:
    """Return token ids and the mask without padding, int64 and bool tensors (windows, length), in ingest's batches."""
    batches = []
    for batch in windows.batches(BATCH_TOKENS):
        ids = padded_ids(batch, tokens, bos)  # with widths of the ladder, like the batches
        batches.append((torch.from_numpy(ids), torch.from_numpy(np.arange(ids.shape[1]) < batch.length[:, None])))
    return batches


def forward(model: Any, batches: list[tuple[Any, Any]]) -> None:
    """Run the bare LM: ``model(input_ids).logits`` of every batch, without a cache, which would only slow it down."""
    with torch.inference_mode():
        for ids, _ in batches:
            _ = model(input_ids=ids, use_cache=False).logits
