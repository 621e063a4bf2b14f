"""The settings of a run: all that its weights depend on."""

import argparse
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from knnstore.corpus import Source, fingerprint
from knnstore.corpus.options import ErrorPolicy
from knnstore.errors import UsageError
from training.telling import first_line

SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that the weights and the result depend on: a run is resumed with the same recipe or not at all."""

    corpus: str
    valid: str | None
    text_field: str
    errors: ErrorPolicy
    tokenizer: str | None
    vocab: int | None
    layers: int
    width: int
    heads: int
    context: int
    dropout: float
    steps: int | None
    epochs: float | None
    batch_tokens: int
    lr: float
    warmup: int | None
    seed: int
    precision: str
    dtype: str

    def __post_init__(self) -> None:
        rules = (
            (self.vocab is None or self.vocab > 256, f"--vocab {self.vocab}: 257 at least (the bytes and {SEPARATOR})"),
            (
                self.vocab is None or self.tokenizer is None,
                "--vocab and --tokenizer: a tokenizer has its size, drop one",
            ),
            (self.layers > 0 and self.heads > 0, f"--layers {self.layers} --heads {self.heads}: 1 at least"),
            (self.width > 0 and self.width % max(1, self.heads) == 0, f"--width {self.width}: a multiple of --heads"),
            (self.context > 1, f"--context {self.context}: 2 tokens at least"),
            (self.batch_tokens >= self.context, f"--batch-tokens {self.batch_tokens}: one --context at least"),
            (0 <= self.dropout < 1, f"--dropout {self.dropout}: 0 at least and below 1"),
            (self.steps is None or self.epochs is None, "--steps and --epochs: both say how long to train, drop one"),
            (self.steps is None or self.steps > 0, f"--steps {self.steps}: 1 at least"),
            (self.epochs is None or 0 < self.epochs < math.inf, f"--epochs {self.epochs}: more than 0"),
            (0 < self.lr < math.inf, f"--lr {self.lr}: more than 0"),
            (self.warmup is None or self.warmup >= 0, f"--warmup {self.warmup}: 0 steps at least"),
            (0 <= self.seed < 2**31, f"--seed {self.seed}: 0 at least and below {2**31}"),
        )
        for kept, message in rules:
            if not kept:
                raise UsageError(message)


def differences(begun: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each setting that isn't the same, as ``--lr 0.001 then and 0.002 now``."""
    names = [name for name in begun | now if begun.get(name) != now.get(name)]
    return [f"--{name.replace('_', '-')} {begun.get(name)} then and {now.get(name)} now" for name in names]


def choose_device(asked: str) -> torch.device:
    """The device asked for, or CUDA's where there is one. Raises UsageError where it can't be used."""
    try:
        device = torch.device(asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {asked} can't be used here ({first_line(error)}): give cpu or cuda") from error
    return device


def choose_precision(asked: str, device: torch.device) -> str:
    """``auto`` as bf16 where the device computes in it natively, else fp32."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if device.type == "cpu" and any(probe() for probe in probes if probe) else "fp32"


def describe(sources: Sequence[Source]) -> str:
    """A corpus in a line: equal as long as its files and their sizes are."""
    return f"{len(sources)} files, {sum(source.bytes for source in sources)} bytes, sha256 {fingerprint(sources)[:16]}"


def file_digest(folder: str) -> str:
    """SHA-256 of a tokenizer: what it does is all in tokenizer.json."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"--tokenizer {folder}: it has no tokenizer.json; give a folder that a fast tokenizer is saved in"
        )
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def make_recipe(
    args: argparse.Namespace, corpus: Sequence[Source], valid: Sequence[Source], device: torch.device
) -> Recipe:
    """The recipe of a command, with every "auto" decided."""
    decided: dict[str, Any] = {
        "corpus": describe(corpus),
        "valid": describe(valid) if valid else None,
        "tokenizer": file_digest(args.tokenizer) if args.tokenizer else None,
        "precision": choose_precision(args.precision, device),
    }
    given = {field.name: getattr(args, field.name) for field in fields(Recipe) if field.name not in decided}
    return Recipe(**given, **decided)
