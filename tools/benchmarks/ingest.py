"""Ingest, compared with the bare LM and with a loop that writes memory maps, on the same windows, batches and threads.

tokens/s: tokens that the LM reads, without padding, for all contestants.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.material import KeepingKeyTasks, bare_model, forward, input_batches, text_folder
from benchmarks.measuring import Contestant, Result, Settings, in_turn, rate_of, rate_rows, ratio
from knnstore.datastore.segment import Segment
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.ingestion.tasks import KeyTask, write_keys
from knnstore.lm.forward import KeyModel, key_model
from knnstore.lm.keylayer import find_key_point
from knnstore.scheduling import Job, SerialRunner
from knnstore.windows import Windows, cut_windows

Batches = list[tuple[Any, Any]]


def run(settings: Settings, work: Path) -> Result:
    tokens = settings.size(settings.rows, quick=6_000, full=80_000)
    rounds = settings.size(settings.rounds, quick=2, full=7)
    text = text_folder(settings, work, tokens)
    default = key_tasks(settings, work, text, "auto")
    auto = key_model(default[0].spec).loaded.dtype
    exact = default if auto == "float32" else key_tasks(settings, work, text, "float32")
    batches, read = task_batches(exact)
    contestants: dict[str, Contestant] = {
        "knnstore float32": knnstore(exact, batches, read),
        "bare LM float32": bare(bare_model(settings.model, "float32"), batches, read),
        "memmap loop float32": memmap_loop(bare_model(settings.model, "float32"), batches, read, work),
    }
    if auto != "float32":
        contestants[f"knnstore {auto}"] = knnstore(default, batches, read)
        contestants[f"bare LM {auto}"] = bare(bare_model(settings.model, auto), batches, read)
    rates = in_turn(contestants, rounds)
    ratios = {
        "ingest_vs_bare": ratio(rates, "knnstore float32", "bare LM float32"),
        "ingest_default_vs_bare": ratio(rates, f"knnstore {auto}", "bare LM float32"),
        "ingest_vs_memmap": ratio(rates, "knnstore float32", "memmap loop float32"),
        "memmap_vs_bare": ratio(rates, "memmap loop float32", "bare LM float32"),
    }
    if auto != "float32":
        ratios[f"ingest_{auto}_vs_bare_{auto}"] = ratio(rates, f"knnstore {auto}", f"bare LM {auto}")
    about = {"tokens read": read, "rounds": rounds, "threads": torch.get_num_threads(), "default dtype": auto}
    columns = ("contestant", "tokens/s", "lowest", "highest", "÷ bare LM")
    return Result("ingest", about, columns, rate_rows(rates, "bare LM float32"), ratios)


def key_tasks(settings: Settings, work: Path, text: Path, dtype: str) -> list[KeyTask]:
    """Return the tasks that compute the keys of a store of this text with the LM in ``dtype``."""
    runner = KeepingKeyTasks()
    store = str(work / f"keys-{dtype}")
    ingest(IngestOptions(corpus=(str(text),), store=store, model=settings.model, dtype=dtype), Job(runner))
    return runner.kept


def task_batches(tasks: list[KeyTask]) -> tuple[Batches, int]:
    """Return the windows and batches of these tasks as tensors, and their number of tokens."""
    segment, bos = Segment(tasks[0].segment), key_model(tasks[0].spec).loaded.bos
    first_row, tokens = segment.documents.first_row, segment.documents.tokens
    values, recipe = segment.values(0, segment.rows), segment.plan.key
    batches: Batches = []
    for task in tasks:
        windows: Windows = cut_windows(
            first_row, tokens, context=recipe.context, stride=recipe.stride, rows=segment.chunk_range(task.chunk)
        )
        read = lambda document, begin, end: values[first_row[document] + begin : first_row[document] + end]  # noqa: E731
        batches += input_batches(windows, read, bos)
    return batches, sum(int(mask.sum()) for _, mask in batches)


def knnstore(tasks: list[KeyTask], batches: Batches, tokens: int) -> Contestant:
    """Run the tasks of an ingest: windows, forward pass to the key, encoding, compression, checksum, fsync, commit."""

    def rate() -> float:
        model: KeyModel = key_model(tasks[0].spec)  # a process keeps one LM, so each round loads it again
        model.keys(batches[0][0].numpy())
        return rate_of(tokens, lambda: list(SerialRunner().run(write_keys, tasks)))

    return rate


def bare(model: Any, batches: Batches, tokens: int) -> Contestant:
    """Run only ``model(input_ids).logits``: no windows to cut, no keys, no disk."""
    forward(model, batches[:1])
    return lambda: rate_of(tokens, lambda: forward(model, batches))


def memmap_loop(model: Any, batches: Batches, tokens: int, work: Path) -> Contestant:
    """Save keys like knn-transformers: a forward hook, the whole LM with its loss, float16 into memory maps."""
    width, rows = model.config.hidden_size, sum(int(mask.sum()) for _, mask in batches)
    keys = np.memmap(work / "memmap.keys", np.float16, "w+", shape=(rows, width))
    values = np.memmap(work / "memmap.values", np.int32, "w+", shape=(rows, 1))
    captured: list[torch.Tensor] = []
    module = find_key_point(model, "ffn-input").module
    assert module is not None
    module.register_forward_hook(lambda _module, inputs, _output: captured.append(inputs[0]))
    save = _saver(model, captured, keys, values)
    save(batches[:1])
    return lambda: rate_of(tokens, lambda: save(batches))


def _saver(model: Any, captured: list[torch.Tensor], keys: Any, values: Any) -> Callable[[Batches], None]:
    def save(batches: Batches) -> None:
        done = 0
        for ids, mask in batches:
            with torch.inference_mode():
                model(input_ids=ids, labels=ids.masked_fill(~mask, -100), use_cache=False)
            rows = captured.pop()[mask]
            keys[done : done + len(rows)] = rows.numpy().astype(np.float16)
            values[done : done + len(rows), 0] = ids[mask].numpy().astype(np.int32)
            done += len(rows)

    return save
