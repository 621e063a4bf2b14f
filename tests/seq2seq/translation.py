"""A translation that is learned in seconds: digits to words. And a store's domain: how radio operators say them."""

import numpy as np
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from knnstore.cli import main

PLAIN = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RADIO = ["zero", "one", "two", "tree", "fower", "fife", "six", "seven", "eight", "niner"]
WORDS = ["<pad>", "</s>", "<unk>", *map(str, range(10)), *dict.fromkeys(PLAIN + RADIO)]
SIZES = {"d_model": 32, "vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
STACKS = SIZES | {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
STACKS |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32, "forced_eos_token_id": 1}
# dropout would be trained with, and is off here so that a second's training will do
STACKS |= {"dropout": 0.0, "bos_token_id": 1, "init_std": 0.1}
T5 = SIZES | {"d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
# family: its sizes, the module whose input is the key, the last attention that a decoder has over itself
FAMILIES = {
    "t5": (T5, "decoder.block.1.layer.2.DenseReluDense", "decoder.block.1.layer.0.SelfAttention"),
    # gated, and a head that is not the embeddings
    "t5 v1.1": (
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "decoder.block.1.layer.2.DenseReluDense",
        "decoder.block.1.layer.0.SelfAttention",
    ),
    "bart": (STACKS, "model.decoder.layers.1.fc1", "model.decoder.layers.1.self_attn"),
    "marian": (STACKS, "model.decoder.layers.1.fc1", "model.decoder.layers.1.self_attn"),
}


def invoke(*arguments):
    """The command in this process; its result."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def tiny_model(family, **sizes):
    """A random model of a family, the same each time."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.split()[0], **FAMILIES[family][0] | sizes)
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def word_tokenizer():
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def numbers(count, names, seed):
    """Pairs: digits, and how they are said."""
    rng = np.random.default_rng(seed)
    digits = [rng.integers(0, 10, rng.integers(3, 8)) for _ in range(count)]
    return [(" ".join(map(str, line)), " ".join(names[digit] for digit in line)) for line in digits]


def train(model, tokenizer, steps=500):
    """Teach the model to say digits as everybody does."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=steps)
    for step in range(steps):
        sources, targets = zip(*numbers(64, PLAIN, 1000 + step), strict=True)
        batch = tokenizer(list(sources), return_tensors="pt", padding=True)
        labels = tokenizer(list(targets), return_tensors="pt", padding=True).input_ids
        labels[labels == tokenizer.pad_token_id] = -100
        loss = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()
