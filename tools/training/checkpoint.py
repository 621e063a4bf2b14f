"""Checkpoints: safetensors with the step in the header of the file, so that one rename replaces everything."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from knnstore.errors import CorruptStoreError
from knnstore.files import flush
from training.telling import first_line
from training.trainer import Trainer

CHECKPOINT = "checkpoint.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(path: Path, trainer: Trainer, step: int) -> None:
    """Durably replace the checkpoint by the state after ``step`` steps."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in trainer.model.named_parameters():
        state = trainer.optimizer.state[parameter]
        tensors |= {f"{name}:{key}": state[key] for key in MOMENTS} | {name: parameter.data}
    aside = path.with_suffix(".tmp")
    save_file(tensors, aside, metadata={"step": str(step)})
    flush(aside)
    aside.replace(path)
    flush(path.parent)


def load_checkpoint(path: Path, trainer: Trainer) -> int:
    """Load the state in ``path`` into the trainer and return its number of steps; 0 if there is no checkpoint."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
            for name, parameter in trainer.model.named_parameters():
                parameter.data.copy_(file.get_tensor(name))
                moments = {key: file.get_tensor(f"{name}:{key}").to(parameter) for key in MOMENTS}
                trainer.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptStoreError(
            f"{path} is not what was saved ({first_line(error)}): delete it to train from the first step"
        ) from error
    return step
