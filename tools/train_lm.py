#!/usr/bin/env python
"""Train a small causal language model (GPT-2's architecture) on text, and save it for transformers.

``python tools/train_lm.py --corpus texts/ --out my-lm --valid held-out/``

The same command resumes from the last checkpoint, however the run ended. On a CPU the weights then equal those of an
uninterrupted run, bit for bit: the windows and dropout of a step depend only on ``--seed`` and the number of the step,
so that no random state has to be saved.

During a run, ``--out`` holds ``run.json`` (the settings), ``train_log.jsonl`` and ``work/`` (tokenizer, token files,
checkpoint); at the end also the model, its tokenizer and, written last, ``result.json``, which marks the run as done.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from training.folder import claim, publish, refuse_strangers, unclaimed_after_mistakes
from training.progress import Progress
from training.recipe import Recipe, choose_device, make_recipe
from training.schedule import DEFAULT_EPOCHS, plan_run
from training.telling import first_line, say
from training.tokens import prepare_tokenizer, separator_of, token_file, train_tokenizer
from training.trainer import Trainer, compiled_loss, new_model, new_optimizer

from knnstore.corpus import ReadOptions, Source, find_sources
from knnstore.datastore.locking import writing
from knnstore.errors import KnnstoreError
from knnstore.wording import speaking

DEFAULT_VOCAB = 8192
LOGITS = {"cpu": 2**26, "cuda": 2**28}  # maximum at once, the largest tensor: 4 bytes each, and 4 for the gradient
COMPILE_STEPS = 1000  # minimum to compile, which takes about a minute


def optimise(trainer: Trainer, out: Path, args: argparse.Namespace) -> None:
    """Run the remaining steps, with checkpoints and evaluations; the last step is always saved."""
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


def prepare(
    args: argparse.Namespace, recipe: Recipe, device: torch.device, corpus: Sequence[Source], valid: Sequence[Source]
) -> tuple[Trainer, Any]:
    """Return the trainer at its first step, and the tokenizer. Files are written atomically."""
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
    """Train the model, or resume an interrupted run, or do nothing if it is finished; return the result."""
    out, device = Path(args.out), choose_device(args.device)
    corpus = find_sources(args.corpus)
    valid = find_sources(args.valid) if args.valid else ()
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
    """Return the parser; options with default None have a default that depends on others, given in their help."""
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
    add("--tokenizer", metavar="DIR", help="use the tokenizer in this folder instead of training one")
    add("--vocab", type=int, help=f"vocabulary size of the trained tokenizer; {DEFAULT_VOCAB} if not given")
    add("--layers", type=int, default=6, help="transformer blocks")
    add("--width", type=int, default=256, help="dimension of the hidden states")
    add("--heads", type=int, default=4, help="attention heads")
    add("--context", type=int, default=256, help="tokens per window")
    add("--dropout", type=float, default=0.05, help="dropout of embeddings and residuals")
    add("--steps", type=int, help="number of updates of the weights")
    add(
        "--epochs",
        type=float,
        help=f"passes over the corpus, instead of --steps; {DEFAULT_EPOCHS:g} if neither is given",
    )
    add("--batch-tokens", type=int, default=8192, help="tokens per step")
    add("--lr", type=float, default=1e-3, help="peak learning rate; the final one is a tenth")
    add("--warmup", type=int, help="steps of linear warm-up; a tenth of the steps, at most 200, if not given")
    add("--seed", type=int, default=0, help="random seed of weights, order and dropout")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 if native, else fp32")
    add("--dtype", choices=("fp16", "fp32"), default="fp16", help="dtype of the saved weights")
    add("--device", default="auto", help="auto: cuda if available, else cpu")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help=f"use torch.compile; if not given, from {COMPILE_STEPS} steps on",
    )
    add("--save-every", type=positive, default=200, help="steps between checkpoints")
    add("--eval-every", type=positive, default=1000, help="steps between evaluations of --valid")
    return parser


def positive(text: str) -> int:
    """Return a positive integer, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give at least 1")
    return int(text)


@speaking(shell=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 system or numerics error, 2 usage error, 130 interrupted."""
    args = command_line().parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        print(json.dumps(run(args), sort_keys=True))
    except KnnstoreError as error:
        say(f"train_lm: {error}")
        return error.exit_code
    except (OSError, SafetensorError) as error:  # safetensors raises its own error for a full disk
        say(f"train_lm: {error}; correct this and run the same command again to resume")
        return 1
    except torch.cuda.OutOfMemoryError as error:
        say(f"train_lm: {first_line(error)}; give a lower --context, --width or --layers")
        return 1
    except KeyboardInterrupt:
        say(f"train_lm: interrupted; run the same command again to resume from the last checkpoint in {args.out}")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
