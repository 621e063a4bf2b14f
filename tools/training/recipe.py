"""The settings of a run: everything that its weights depend on."""

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
    """Everything that the weights and the result depend on; a run is only resumed with the same recipe."""

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
            (self.vocab is None or self.vocab > 256, f"--vocab {self.vocab}: at least 257 (the bytes and {SEPARATOR})"),
            (
                self.vocab is None or self.tokenizer is None,
                "--vocab and --tokenizer: a tokenizer has a fixed size; omit one",
            ),
            (self.layers > 0 and self.heads > 0, f"--layers {self.layers} --heads {self.heads}: at least 1"),
            (self.width > 0 and self.width % max(1, self.heads) == 0, f"--width {self.width}: a multiple of --heads"),
            (self.context > 1, f"--context {self.context}: at least 2 tokens"),
            (self.batch_tokens >= self.context, f"--batch-tokens {self.batch_tokens}: at least one --context"),
            (0 <= self.dropout < 1, f"--dropout {self.dropout}: at least 0 and below 1"),
            (self.steps is None or self.epochs is None, "--steps and --epochs: both set the duration; omit one"),
            (self.steps is None or self.steps > 0, f"--steps {self.steps}: at least 1"),
            (self.epochs is None or 0 < self.epochs < math.inf, f"--epochs {self.epochs}: more than 0"),
            (0 < self.lr < math.inf, f"--lr {self.lr}: more than 0"),
            (self.warmup is None or self.warmup >= 0, f"--warmup {self.warmup}: at least 0 steps"),
            (0 <= self.seed < 2**31, f"--seed {self.seed}: at least 0 and below {2**31}"),
        )
        for valid, message in rules:
            if not valid:
                raise UsageError(message)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return each changed setting as ``--lr 0.001 before and 0.002 now``."""
    names = [name for name in before | now if before.get(name) != now.get(name)]
    return [f"--{name.replace('_', '-')} {before.get(name)} before and {now.get(name)} now" for name in names]


def choose_device(asked: str) -> torch.device:
    """Return the requested device; for ``auto`` CUDA's if there is one. Raises UsageError if it can't be used."""
    try:
        device = torch.device(asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {asked} can't be used here ({first_line(error)}): give cpu or cuda") from error
    return device


def choose_precision(asked: str, device: torch.device) -> str:
    """Return the requested precision; for ``auto`` bf16 if the device supports it natively, else fp32."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if device.type == "cpu" and any(probe() for probe in probes if probe) else "fp32"


def describe(sources: Sequence[Source]) -> str:
    """Return a one-line description of a corpus, which is equal as long as its files and their sizes are."""
    return f"{len(sources)} files, {sum(source.bytes for source in sources)} bytes, sha256 {fingerprint(sources)[:16]}"


def file_digest(folder: str) -> str:
    """Return the SHA-256 of tokenizer.json, which determines a tokenizer."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"--tokenizer {folder}: it has no tokenizer.json; give a folder with a saved fast tokenizer")
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def make_recipe(
    args: argparse.Namespace, corpus: Sequence[Source], valid: Sequence[Source], device: torch.device
) -> Recipe:
    """Return the recipe of a command, with every ``auto`` resolved."""
    decided: dict[str, Any] = {
        "corpus": describe(corpus),
        "valid": describe(valid) if valid else None,
        "tokenizer": file_digest(args.tokenizer) if args.tokenizer else None,
        "precision": choose_precision(args.precision, device),
    }
    given = {field.name: getattr(args, field.name) for field in fields(Recipe) if field.name not in decided}
    return Recipe(**given, **decided)
