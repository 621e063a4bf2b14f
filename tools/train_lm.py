#!/usr/bin/env python
"""Train a small causal language model (GPT-2's architecture) on text, into a folder that transformers loads.

``python tools/train_lm.py --corpus texts/ --out my-lm --valid held-out/``

The same command again goes on from the last checkpoint, however the run ended. On a CPU the weights are then those of
a run that was never interrupted, bit for bit: a step's windows and its dropout depend on ``--seed`` and the step's
number alone, so that no random state has to be kept.

``--out`` has, while it runs, ``run.json`` (the settings), ``train_log.jsonl`` and ``work/`` (tokenizer, token files,
checkpoint); when it ends the model and its tokenizer as well, and last ``result.json``, which marks the run as done.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from tqdm import tqdm

from knnstore.atomic import TEMPORARY_SUFFIX, sync_file, sync_folder, write_atomically, write_json
from knnstore.corpus import ReadCounts, ReadOptions, Source, find_sources, fingerprint, read_documents
from knnstore.corpus.options import ErrorPolicy
from knnstore.datastore.locking import writing
from knnstore.errors import CorruptStoreError, KnnstoreError, NumericsError, UsageError

SEPARATOR = "<|endoftext|>"
CHECKPOINT = "checkpoint.safetensors"
DEFAULT_VOCAB, DEFAULT_EPOCHS = 8192, 4.0  # up to about four passes, text seen again teaches nearly as much as new text
TOKENIZER_BYTES = 10**9  # of a larger corpus a tokenizer learns nothing more, and the words it counts fill the memory
BATCH_CHARS = 10**6
LOGITS = {"cpu": 2**26, "cuda": 2**28}  # at once, 4 bytes each and as many for the gradient: a step's largest tensor
COMPILE_STEPS = 1000  # compiling takes about a minute, which a shorter run doesn't win back
LOG_STEPS, LINE_SECONDS = 10, 30.0
MOMENTS = ("exp_avg", "exp_avg_sq")
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0


# Settings


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


# Decisions: numbers in, numbers out


@dataclass(frozen=True)
class Plan:
    """Optimiser steps, those of them that warm up, windows in the corpus, in a step, and in one pass of the model."""

    steps: int
    warmup: int
    windows: int
    batch: int
    micro: int


def plan_run(recipe: Recipe, tokens: int, vocab: int, logits: int) -> Plan:
    """The plan for a stream of ``tokens`` tokens with at most ``logits`` logits a pass (or one window's)."""
    windows = (tokens - 1) // recipe.context
    if windows < 1:
        raise UsageError(f"--corpus has {tokens} tokens, and one window takes {recipe.context + 1}: give more text")
    batch = recipe.batch_tokens // recipe.context
    steps = recipe.steps or math.ceil((recipe.epochs or DEFAULT_EPOCHS) * windows / batch)
    warmup = min(200, steps // 10) if recipe.warmup is None else recipe.warmup
    if warmup >= steps:
        raise UsageError(f"--warmup {warmup}: fewer than the {steps} steps of the run")
    return Plan(steps, warmup, windows, batch, largest_divisor(batch, logits // (recipe.context * vocab)))


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``, or 1: so every pass of a step has one shape."""
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= max(1, limit))


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear up to the peak in ``warmup`` steps, then half a cosine down to a tenth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@lru_cache(maxsize=2)
def epoch_order(windows: int, epoch: int, seed: int) -> np.ndarray:
    """The windows in the order of one epoch: (windows,) int64. RandomState's stream is the same in all of NumPy."""
    return np.random.RandomState([seed, epoch]).permutation(windows)


def step_windows(step: int, batch: int, windows: int, seed: int) -> list[int]:
    """The windows of one step, which may span the end of an epoch."""
    places = (divmod(place, windows) for place in range(step * batch, (step + 1) * batch))
    return [int(epoch_order(windows, epoch, seed)[place]) for epoch, place in places]


def kept_lines(log: str, step: int) -> str:
    """The lines of a log up to ``step``: those after it, and a torn one, are written again by a resumed run."""
    whole = [line for line in log.splitlines(keepends=True) if line.endswith("\n")]
    return "".join(line for line in whole if json.loads(line)["step"] <= step)


# Text to tokens


def read_pieces(
    sources: Sequence[Source], options: ReadOptions, counts: ReadCounts | None = None
) -> Iterator[tuple[bool, str]]:
    """Every piece of every document, and whether it is its document's first."""
    for source in sources:
        for document in read_documents(source, options, counts):
            for number, piece in enumerate(document.pieces):
                yield number == 0, piece


def train_tokenizer(sources: Sequence[Source], options: ReadOptions, vocab: int) -> Tokenizer:
    """A byte-level BPE of at most ``vocab`` tokens, from every n-th piece where the corpus is large."""
    stride = 1 + sum(source.bytes for source in sources) // TOKENIZER_BYTES
    texts = (text for _, text in islice(read_pieces(sources, options), 0, None, stride))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(folder: str | Path) -> Any:
    """The PreTrainedTokenizerFast in ``folder``. Raises UsageError if there is none that can be used."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    except Exception as error:  # tokenizers raises bare Exceptions
        raise UsageError(f"--tokenizer {folder} can't be loaded: {first_line(error)}") from error
    separator_of(tokenizer)
    return tokenizer


def separator_of(tokenizer: Any) -> int:
    """The id of the token that stands before each document: BOS, else EOS. Raises UsageError if it has neither."""
    separator = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if separator is None:
        raise UsageError(f"--tokenizer {tokenizer.name_or_path} has no BOS or EOS token to set before a document")
    return int(separator)


def prepare_tokenizer(folder: Path, given: str | None, train: Callable[[], Tokenizer], context: int) -> Any:
    """The tokenizer of the run: an earlier run's in ``folder``, else ``given`` or trained, and saved there."""
    if not folder.exists():
        if given:
            tokenizer = load_tokenizer(given)
        else:
            say("training the tokenizer")
            tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_object=train(), bos_token=SEPARATOR, eos_token=SEPARATOR
            )
        tokenizer.model_max_length = context
        aside = folder.with_name("tokenizer.tmp")
        tokenizer.save_pretrained(aside)
        sync_files(aside)
        aside.rename(folder)
        sync_folder(folder.parent)
    return load_tokenizer(folder)


def encode(pieces: Iterable[tuple[bool, str]], tokenizer: Any) -> Iterator[list[int]]:
    """The ids of each piece, after the separator where it is its document's first."""
    for batch in in_batches(pieces):
        encodings = tokenizer.backend_tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
        for (first, _), encoding in zip(batch, encodings, strict=True):
            yield [separator_of(tokenizer), *encoding.ids] if first else encoding.ids


def in_batches(pieces: Iterable[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    """Lists of pieces of BATCH_CHARS characters together, or one longer piece, for the tokenizer's threads."""
    batch: list[tuple[bool, str]] = []
    size = 0
    for piece in pieces:
        if batch and size + len(piece[1]) > BATCH_CHARS:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece[1])
    if batch:
        yield batch


def token_file(path: Path, sources: Sequence[Source], options: ReadOptions, tokenizer: Any) -> np.ndarray:
    """The token stream of ``sources``, (tokens,) uint16 or uint32, mapped from ``path`` and written there at first."""
    dtype = np.dtype("<u2" if len(tokenizer) <= 2**16 else "<u4")
    if not path.exists():
        say(f"tokenising {len(sources)} files into {path}")
        aside, counts = path.with_suffix(".tmp"), ReadCounts()
        with aside.open("wb") as file:
            for ids in encode(read_pieces(sources, options, counts), tokenizer):
                file.write(np.asarray(ids, dtype).tobytes())
        say(", ".join(f"{number} {what}" for what, number in asdict(counts).items()))
        sync_file(aside)
        aside.replace(path)
        sync_folder(path.parent)
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def read_windows(tokens: np.ndarray, windows: Sequence[int], context: int) -> torch.Tensor:
    """Inputs and, one place further, their targets: (windows, context + 1) int64."""
    rows = [tokens[window * context : (window + 1) * context + 1] for window in windows]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


# The model and its training


def new_model(recipe: Recipe, tokenizer: Any, device: torch.device) -> Any:
    """A GPT2LMHeadModel with weights drawn from the seed."""
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        embd_pdrop=recipe.dropout,
        resid_pdrop=recipe.dropout,
        attn_pdrop=0.0,  # so that the fused attention kernels serve
        bos_token_id=separator_of(tokenizer),
        eos_token_id=separator_of(tokenizer) if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
    )
    torch.manual_seed(recipe.seed << 32)
    return transformers.AutoModelForCausalLM.from_config(config).to(device)


def new_optimizer(model: Any) -> torch.optim.AdamW:
    """AdamW that decays matrices, and neither biases nor norms; each step sets its own learning rate."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS)


@dataclass(frozen=True)
class Trainer:
    """A model in training, with what it is trained on and how."""

    recipe: Recipe
    plan: Plan
    tokens: np.ndarray
    valid: np.ndarray | None
    separator: int
    device: torch.device
    model: Any
    optimizer: torch.optim.AdamW

    def loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood, in nats, over the targets of ``windows`` (windows, context + 1)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits = self.model(input_ids=windows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    def step(self, step: int, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """One update of the weights; returns the loss before it. Raises NumericsError where that isn't finite."""
        plan, seed = self.plan, self.recipe.seed
        torch.manual_seed((seed << 32) + step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        windows = read_windows(self.tokens, step_windows(step, plan.batch, plan.windows, seed), self.recipe.context)
        total = torch.zeros((), device=self.device)
        for part in torch.split(windows.to(self.device), plan.micro):
            loss = loss_of(part) * (plan.micro / plan.batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        if not torch.isfinite(total + norm):
            raise NumericsError(f"loss {float(total)}, gradient {float(norm)} at step {step}: try a lower --lr")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total)

    def learning_rate(self, step: int) -> float:
        """The learning rate of one step."""
        return learning_rate(step, self.plan.steps, self.plan.warmup, self.recipe.lr)

    def evaluate(self) -> dict[str, float]:
        """Perplexity and number of tokens of the validation text; nothing where there is none."""
        if self.valid is None:
            return {}
        value, count = perplexity(self.model, self.valid, self.recipe.context, self.separator, self.plan.micro)
        return {"valid_perplexity": value, "valid_tokens": count}


def compiled_loss(trainer: Trainer) -> Callable[[torch.Tensor], torch.Tensor]:
    """``trainer.loss`` compiled, or as it is, and said so, where this machine can't."""
    try:
        loss_of: Callable[[torch.Tensor], torch.Tensor] = torch.compile(trainer.loss)
        sample = read_windows(trainer.tokens, [0] * trainer.plan.micro, trainer.recipe.context)
        loss_of(sample.to(trainer.device)).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a missing compiler, header or driver raises
        say(f"torch.compile doesn't work here, so the model runs as it is: {first_line(error)}")
        loss_of = trainer.loss
    trainer.model.zero_grad()
    return loss_of


@torch.no_grad()
def perplexity(model: Any, tokens: np.ndarray, context: int, separator: int, micro: int) -> tuple[float, int]:
    """Perplexity per token and the number of tokens, in fp32, in windows of ``context`` without overlap.

    Separators are context and no targets, as in the scores that knnstore computes.
    """
    total, count, was_training = 0.0, 0, model.training
    model.eval()
    for windows in evaluation_windows(tokens, context, micro):
        targets = windows[:, 1:].to(model.device)
        logits = model(input_ids=windows[:, :-1].to(model.device), use_cache=False).logits.float()
        losses = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=separator, reduction="sum"
        )
        total += float(losses)
        count += int((targets != separator).sum())
    model.train(was_training)
    if count == 0:
        raise UsageError("--valid has no token to predict: give more text")
    return math.exp(total / count), count


def evaluation_windows(tokens: np.ndarray, context: int, micro: int) -> Iterator[torch.Tensor]:
    """The whole stream: batches of up to ``micro`` windows (windows, context + 1) int64, then the shorter rest."""
    windows = (len(tokens) - 1) // context
    for first in range(0, windows, micro):
        yield read_windows(tokens, range(first, min(first + micro, windows)), context)
    rest = tokens[windows * context :]
    if len(rest) > 1:
        yield torch.from_numpy(rest.astype(np.int64))[None]


# Checkpoints: safetensors, with the step in the file's JSON header, so that one rename replaces all of it


def save_checkpoint(path: Path, trainer: Trainer, step: int) -> None:
    """Replace the checkpoint by the state after ``step`` steps, durably."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in trainer.model.named_parameters():
        state = trainer.optimizer.state[parameter]
        tensors |= {f"{name}:{key}": state[key] for key in MOMENTS} | {name: parameter.data}
    aside = path.with_suffix(".tmp")
    save_file(tensors, aside, metadata={"step": str(step)})
    sync_file(aside)
    aside.replace(path)
    sync_folder(path.parent)


def load_checkpoint(path: Path, trainer: Trainer) -> int:
    """The number of steps behind the state in ``path``, which the trainer takes over; 0 where there is none."""
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


# What a run tells


class Progress:
    """A JSON line every LOG_STEPS steps; for people a bar, or a line now and then where stderr is no terminal."""

    def __init__(self, path: Path, trainer: Trainer, start: int) -> None:
        log = kept_lines(path.read_text(), start) if path.exists() else ""
        write_atomically(path, log.encode())
        self.log, self.trainer = path.open("a"), trainer
        self.bar = tqdm(total=trainer.plan.steps, initial=start, unit="step", disable=None, dynamic_ncols=True)
        self.losses: list[float] = []
        self.seconds, self.last_line = 0.0, time.perf_counter()

    def after(self, step: int, loss: float, seconds: float) -> None:
        """Take note of the step that ended as number ``step`` (from 1)."""
        self.losses.append(loss)
        self.seconds += seconds
        self.bar.update()
        plan = self.trainer.plan
        if step % LOG_STEPS == 0 or step == plan.steps:
            rate = len(self.losses) * plan.batch * self.trainer.recipe.context / self.seconds
            mean = sum(self.losses) / len(self.losses)
            learning_rate = self.trainer.learning_rate(step - 1)
            self.write(step=step, loss=mean, learning_rate=learning_rate, tokens_per_second=round(rate))
            self.bar.set_postfix(loss=f"{mean:.3f}", tokens_s=f"{rate:.0f}")
            if self.bar.disable and time.perf_counter() - self.last_line > LINE_SECONDS:
                left = (plan.steps - step) * self.seconds / len(self.losses) / 60
                say(f"step {step}/{plan.steps}, loss {mean:.3f}, {rate:.0f} tokens/s, {left:.0f} min left")
                self.last_line = time.perf_counter()
            self.losses, self.seconds = [], 0.0

    def write(self, **values: Any) -> None:
        """One line of the log; ``step`` is always among the values."""
        self.log.write(json.dumps(values) + "\n")
        self.log.flush()

    def close(self) -> None:
        """Let go of the log and the terminal."""
        self.bar.close()
        self.log.close()


def say(text: str) -> None:
    """One line for a person, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)


def first_line(error: Exception) -> str:
    """The error's first line, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# The run


def optimise(trainer: Trainer, out: Path, args: argparse.Namespace) -> None:
    """All steps that are left, with checkpoints and evaluations on the way; the last step is always saved."""
    checkpoint, steps = out / "work" / CHECKPOINT, trainer.plan.steps
    start = load_checkpoint(checkpoint, trainer)
    say(f"{'resuming at' if start else 'training'} step {start} of {steps} on {trainer.device}")
    compile_it = steps - start >= COMPILE_STEPS if args.compile is None else args.compile
    loss_of = compiled_loss(trainer) if compile_it and start < steps else trainer.loss
    progress = Progress(out / "train_log.jsonl", trainer, start)
    try:
        for step in range(start + 1, steps + 1):
            began = time.perf_counter()
            loss = trainer.step(step - 1, loss_of)
            progress.after(step, loss, time.perf_counter() - began)
            if step % args.eval_every == 0 and step < steps and trainer.valid is not None:
                progress.write(step=step, **(values := trainer.evaluate()))
                say(f"step {step}/{steps}, validation perplexity {values['valid_perplexity']:.2f}")
            if step % args.save_every == 0 or step == steps:
                save_checkpoint(checkpoint, trainer, step)
    finally:
        progress.close()


def publish(out: Path, trainer: Trainer, tokenizer: Any) -> dict[str, Any]:
    """Write tokenizer and model, rounded to the dtype asked for; then the result, of just these weights; return it."""
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
    write_json(out / "result.json", result)
    return result


def sync_files(folder: Path) -> None:
    """Flush a folder and the files right in it to the device."""
    for path in (*folder.iterdir(), folder):
        sync_file(path)


def refuse_strangers(out: Path) -> None:
    """Raise UsageError if ``out`` is no folder, or one with files of something else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file: give a new or an empty folder")
    names = sorted(path.name for path in out.iterdir() if path.name != "work" and path.suffix != TEMPORARY_SUFFIX)
    if names and "run.json" not in names:
        raise UsageError(f"--out {out} has files of something else ({names[0]}): give a new or an empty folder")


def claim(out: Path, recipe: Recipe) -> None:
    """Make ``out`` the folder of this recipe. Raises UsageError if it is another's."""
    settings = out / "run.json"
    if not settings.exists():
        write_json(settings, asdict(recipe))
    elif changes := differences(json.loads(settings.read_text()), asdict(recipe)):
        changed = "; ".join(changes)
        raise UsageError(f"{out} was begun with other settings ({changed}): give the same again, or another --out")


@contextmanager
def unclaimed_after_mistakes(out: Path) -> Iterator[None]:
    """Let go of ``out`` on a UsageError before anything is trained: the mended command has other settings."""
    try:
        yield
    except UsageError:
        if not (out / "work" / CHECKPOINT).exists():
            shutil.rmtree(out / "work")  # first, so that no other recipe ever finds these token files
            (out / "run.json").unlink()
        raise


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


def prepare(
    args: argparse.Namespace, recipe: Recipe, device: torch.device, corpus: Sequence[Source], valid: Sequence[Source]
) -> tuple[Trainer, Any]:
    """The trainer at its first step, and the tokenizer; each file made on the way is there or isn't, never in part."""
    work, options = Path(args.out) / "work", ReadOptions(text_field=recipe.text_field, errors=recipe.errors)
    tokenizer = prepare_tokenizer(
        work / "tokenizer",
        args.tokenizer,
        lambda: train_tokenizer(corpus, options, recipe.vocab or DEFAULT_VOCAB),
        recipe.context,
    )
    tokens = token_file(work / "train.bin", corpus, options, tokenizer)
    valid_tokens = token_file(work / "valid.bin", valid, options, tokenizer) if valid else None
    plan = plan_run(recipe, len(tokens), len(tokenizer), LOGITS.get(device.type, LOGITS["cpu"]))
    model = new_model(recipe, tokenizer, device)
    separator = separator_of(tokenizer)
    trainer = Trainer(recipe, plan, tokens, valid_tokens, separator, device, model, new_optimizer(model))
    return trainer, tokenizer


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train as the command says, or go on, or find it done; returns the result."""
    out, device = Path(args.out), choose_device(args.device)
    corpus = find_sources(args.corpus).sources
    valid = find_sources(args.valid).sources if args.valid else ()
    recipe = make_recipe(args, corpus, valid, device)
    refuse_strangers(out)
    (out / "work").mkdir(parents=True, exist_ok=True)
    with writing(out / "work"):
        claim(out, recipe)
        if (out / "result.json").exists():
            say(f"{out} is finished: nothing to do")
            result: dict[str, Any] = json.loads((out / "result.json").read_text())
        else:
            with unclaimed_after_mistakes(out):
                trainer, tokenizer = prepare(args, recipe, device, corpus, valid)
            optimise(trainer, out, args)
            result = publish(out, trainer, tokenizer)
        shutil.rmtree(out / "work")
    return result


def command_line() -> argparse.ArgumentParser:
    """The options; those with default None have one that depends on the rest, and their help says which."""
    parser = argparse.ArgumentParser(
        description="Train a small causal language model on text; the same command again resumes it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--corpus", nargs="+", required=True, help="folders, files or glob patterns: .txt .md .jsonl .parquet")
    add("--valid", nargs="+", help="text to compute the perplexity of")
    add("--out", required=True, help="folder of the model")
    add("--text-field", default="text", help="JSON field or Parquet column with the text")
    add("--errors", choices=("strict", "replace", "skip"), default="strict", help="what to do with undecodable text")
    add("--tokenizer", metavar="DIR", help="use the tokenizer of this folder, don't train one")
    add("--vocab", type=int, help=f"tokens of the trained tokenizer; {DEFAULT_VOCAB} if not given")
    add("--layers", type=int, default=6, help="transformer blocks")
    add("--width", type=int, default=256, help="dimension of the hidden states")
    add("--heads", type=int, default=4, help="attention heads")
    add("--context", type=int, default=256, help="tokens of a window")
    add("--dropout", type=float, default=0.05, help="of embeddings and residuals")
    add("--steps", type=int, help="updates of the weights")
    add(
        "--epochs",
        type=float,
        help=f"passes over the corpus, instead of --steps; {DEFAULT_EPOCHS:g} if neither is given",
    )
    add("--batch-tokens", type=int, default=8192, help="tokens a step")
    add("--lr", type=float, default=1e-3, help="peak learning rate; it ends at a tenth")
    add("--warmup", type=int, help="steps of linear warm-up; a tenth of the steps, 200 at most, if not given")
    add("--seed", type=int, default=0, help="of the weights, the order and the dropout")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 where it is native")
    add("--dtype", choices=("fp16", "fp32"), default="fp16", help="of the saved weights")
    add("--device", default="auto", help="auto: cuda where there is one, else cpu")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help=f"torch.compile; from {COMPILE_STEPS} steps if not given",
    )
    add("--save-every", type=positive, default=200, help="steps between checkpoints")
    add("--eval-every", type=positive, default=1000, help="steps between evaluations of --valid")
    return parser


def positive(text: str) -> int:
    """An integer from 1, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 at least")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the system's or the numbers' fault, 2 the command's, 130 interrupted."""
    args = command_line().parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        print(json.dumps(run(args), sort_keys=True))
    except KnnstoreError as error:
        say(f"train_lm: {error}")
        return error.exit_code
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        say(f"train_lm: {error}; make it possible and run the same command again, it goes on")
        return 1
    except torch.cuda.OutOfMemoryError as error:
        say(f"train_lm: {first_line(error)}; give a lower --context, --width or --layers")
        return 1
    except KeyboardInterrupt:
        say(f"train_lm: interrupted; the same command again goes on from the last checkpoint in {args.out}")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
