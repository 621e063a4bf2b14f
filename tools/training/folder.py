"""The folder of a run: which recipe it belongs to, and its final content."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from knnstore.errors import NumericsError, UsageError
from knnstore.files import TEMPORARY_SUFFIX, encode_json, write_atomically
from training.checkpoint import CHECKPOINT
from training.recipe import Recipe, differences
from training.tokens import sync_files
from training.trainer import Trainer


def refuse_strangers(out: Path) -> None:
    """Raise UsageError if ``out`` isn't a folder, or holds files of something else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file: give a new or an empty folder")
    names = sorted(path.name for path in out.iterdir() if path.name != "work" and path.suffix != TEMPORARY_SUFFIX)
    if names and "run.json" not in names:
        raise UsageError(f"--out {out} has files of something else ({names[0]}): give a new or an empty folder")


def claim(out: Path, recipe: Recipe) -> None:
    """Record this recipe in ``out``. Raises UsageError if another one is recorded."""
    settings = out / "run.json"
    if not settings.exists():
        write_atomically(settings, encode_json(asdict(recipe)))
    elif changes := differences(json.loads(settings.read_text()), asdict(recipe)):
        changed = "; ".join(changes)
        raise UsageError(f"{out} was started with other settings ({changed}): give the same ones, or another --out")


@contextmanager
def unclaimed_after_mistakes(out: Path) -> Iterator[None]:
    """Remove the recipe from ``out`` on a UsageError before training, because the corrected command has another."""
    try:
        yield
    except UsageError:
        if not (out / "work" / CHECKPOINT).exists():
            shutil.rmtree(out / "work")  # first, so that no other recipe ever finds these token files
            (out / "run.json").unlink()
        raise


def publish(out: Path, trainer: Trainer, tokenizer: Any) -> dict[str, Any]:
    """Write the tokenizer and the model in the requested dtype, then evaluate these weights; return the result."""
    model, dtype = trainer.model, torch.float16 if trainer.recipe.dtype == "fp16" else torch.float32
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtype).float()
        if not torch.isfinite(parameter).all():
            raise NumericsError(f"{name} has values too large for fp16: give --dtype fp32 and another --out")
    sizes = {"parameters": model.num_parameters(), "train_tokens": len(trainer.tokens)}
    result = {"steps": trainer.plan.steps, **sizes, **trainer.evaluate()}
    tokenizer.save_pretrained(out)
    model.to(dtype).save_pretrained(out)
    sync_files(out)
    write_atomically(out / "result.json", encode_json(result))
    return result
