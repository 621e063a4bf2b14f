"""The model, its training step and its perplexity."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional

from knnstore.errors import NumericsError, UsageError
from training.recipe import Recipe
from training.schedule import Plan, learning_rate, step_windows
from training.telling import first_line, say
from training.tokens import read_windows, separator_of

BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0


def new_model(recipe: Recipe, tokenizer: Any, device: torch.device) -> Any:
    """Return a GPT2LMHeadModel with random weights from the seed."""
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        embd_pdrop=recipe.dropout,
        resid_pdrop=recipe.dropout,
        attn_pdrop=0.0,  # so that fused attention kernels can be used
        bos_token_id=separator_of(tokenizer),
        eos_token_id=separator_of(tokenizer) if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
    )
    torch.manual_seed(recipe.seed << 32)
    return transformers.AutoModelForCausalLM.from_config(config).to(device)


def new_optimizer(model: Any) -> torch.optim.AdamW:
    """Return AdamW with weight decay for matrices only; the learning rate is set in each step."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS)


@dataclass(frozen=True)
class Trainer:
    """A model in training, with its data and settings."""

    recipe: Recipe
    plan: Plan
    tokens: np.ndarray
    valid: np.ndarray | None
    separator: int
    device: torch.device
    model: Any
    optimizer: torch.optim.AdamW

    def loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the mean negative log-likelihood, in nats, of the targets of ``windows`` (windows, context + 1)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits = self.model(input_ids=windows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    def step(self, step: int, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Update the weights; return the loss before the update. Raises NumericsError if it isn't finite."""
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
        """Return the learning rate of a step."""
        return learning_rate(step, self.plan.steps, self.plan.warmup, self.recipe.lr)

    def evaluate(self) -> dict[str, float]:
        """Return perplexity and number of tokens of the validation text; empty without one."""
        if self.valid is None:
            return {}
        value, count = perplexity(self.model, self.valid, self.recipe.context, self.separator, self.plan.micro)
        return {"valid_perplexity": value, "valid_tokens": count}


def compiled_loss(trainer: Trainer) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return ``trainer.loss`` compiled; if that fails here, return it unchanged and print why."""
    try:
        loss_of: Callable[[torch.Tensor], torch.Tensor] = torch.compile(trainer.loss)
        sample = read_windows(trainer.tokens, [0] * trainer.plan.micro, trainer.recipe.context)
        loss_of(sample.to(trainer.device)).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # a missing compiler, header or driver raises all kinds of errors
        say(f"torch.compile doesn't work here, so the model runs as it is: {first_line(error)}")
        loss_of = trainer.loss
    trainer.model.zero_grad()
    return loss_of


@torch.no_grad()
def perplexity(model: Any, tokens: np.ndarray, context: int, separator: int, micro: int) -> tuple[float, int]:
    """Return perplexity per token and number of tokens, in fp32 and in windows of ``context`` without overlap.

    Separators are context but not targets, as in the scores of knnstore.
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
        raise UsageError("--valid has no tokens to predict: give more text")
    return math.exp(total / count), count


def evaluation_windows(tokens: np.ndarray, context: int, micro: int) -> Iterator[torch.Tensor]:
    """Yield the stream: batches of up to ``micro`` windows, int64 (windows, context + 1), then the shorter rest."""
    windows = (len(tokens) - 1) // context
    for first in range(0, windows, micro):
        yield read_windows(tokens, range(first, min(first + micro, windows)), context)
    rest = tokens[windows * context :]
    if len(rest) > 1:
        yield torch.from_numpy(rest.astype(np.int64))[None]
