"""Teach a translation model another way to say things without training it: kNN-MT (Khandelwal et al. 2021).

A small encoder-decoder model learns to say digits in words. Radio operators say some of them in another way. With a
store of a few hundred of their pairs the model speaks like them; without it, it is what it was.
"""

import contextlib
import random
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

import knnstore
from knnstore.cli import main

PLAIN = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RADIO = ["zero", "one", "two", "tree", "fower", "fife", "six", "seven", "eight", "niner"]


def pairs(count: int, names: list[str]) -> tuple[list[str], list[str]]:
    """Digits, and how they are said."""
    numbers = [random.choices(range(10), k=random.randint(3, 7)) for _ in range(count)]
    return [" ".join(map(str, number)) for number in numbers], [" ".join(names[d] for d in n) for n in numbers]


def train(folder: Path) -> None:
    """The model that says digits as everybody does; yours would be T5, BART or Marian from the hub."""
    words = ["<pad>", "</s>", "<unk>", *map(str, range(10)), *dict.fromkeys(PLAIN + RADIO)]
    by_words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    by_words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    by_words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=by_words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    ends = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": None}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"vocab_size": len(words), "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.1}
    model = MarianMTModel(MarianConfig(**ends, **layers, **sizes, max_position_embeddings=32, dropout=0.0))
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=250)
    for _ in range(250):
        sources, targets = pairs(64, PLAIN)
        batch = tokenizer(sources, text_target=targets, return_tensors="pt", padding=True, return_token_type_ids=False)
        batch["labels"][batch["labels"] == 0] = -100
        optimiser.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def command(*arguments: object) -> None:
    """A command of knnstore, in this process; in a shell it is typed as it is printed."""
    print("$ knnstore", *arguments)
    main([*map(str, arguments), "--quiet"], standalone_mode=False)
    print()


def translated(digits: str) -> str:
    """What the model says, of four beams."""
    inputs = tokenizer(digits, return_tensors="pt", return_token_type_ids=False)
    written = model.generate(**inputs, num_beams=4, max_new_tokens=12)
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


random.seed(0)
torch.manual_seed(0)
logging.disable_progress_bar()
with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
    train(Path("model"))
    for split, count in (("train", 300), ("test", 40)):
        for side, lines in zip(("digits", "words"), pairs(count, RADIO), strict=True):
            Path(f"{split}.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")

    these = ("--source", "train.digits", "--target", "train.words")
    command("ingest", "--task", "seq2seq", *these, "--model", "model", "--store", "radio", "--workers", 0)
    command("index", "--store", "radio")
    command("score", "--model", "model", "--store", "radio", "--source", "test.digits", "--target", "test.words")

    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
    print("the model alone     ", translated("3 4 5 9 1"))
    with knnstore.attach(model, "radio", lambda_=0.9, temperature=10, k=64):
        print("with the store      ", translated("3 4 5 9 1"))
    print("and without it again", translated("3 4 5 9 1"))
