"""Turn text into tokens: the tokenizer, and token streams in memory-mapped files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from knnstore.corpus import ReadCounts, ReadOptions, Source, read_documents
from knnstore.errors import UsageError
from knnstore.files import flush
from training.recipe import SEPARATOR
from training.telling import first_line, say

TOKENIZER_BYTES = 10**9  # a tokenizer learns no more from a larger corpus, and counting its words needs more memory
BATCH_CHARS = 10**6


def read_pieces(
    sources: Sequence[Source], options: ReadOptions, counts: ReadCounts | None = None
) -> Iterator[tuple[bool, str]]:
    """Yield every piece of every document, and whether it is the first of its document."""
    for source in sources:
        for document in read_documents(source, options, counts):
            for number, piece in enumerate(document.pieces):
                yield number == 0, piece


def train_tokenizer(sources: Sequence[Source], options: ReadOptions, vocab: int) -> Tokenizer:
    """Return a byte-level BPE of at most ``vocab`` tokens, trained on every n-th piece if the corpus is large."""
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
    """Return the PreTrainedTokenizerFast in ``folder``. Raises UsageError if it can't be used."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    except Exception as error:  # tokenizers raises bare Exceptions
        raise UsageError(f"--tokenizer {folder} can't be loaded: {first_line(error)}") from error
    separator_of(tokenizer)
    return tokenizer


def separator_of(tokenizer: Any) -> int:
    """Return the id of the token before each document: BOS, else EOS. Raises UsageError if there is neither."""
    separator = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if separator is None:
        raise UsageError(f"--tokenizer {tokenizer.name_or_path} has no BOS or EOS token to set before a document")
    return int(separator)


def sync_files(folder: Path) -> None:
    """Flush a folder and the files directly in it to the device."""
    for path in (*folder.iterdir(), folder):
        flush(path)


def prepare_tokenizer(folder: Path, given: str | None, train: Callable[[], Tokenizer], context: int) -> Any:
    """Return the tokenizer of the run: the saved one in ``folder``, else ``given`` or trained, and save it there."""
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
        flush(folder.parent)
    return load_tokenizer(folder)


def encode(pieces: Iterable[tuple[bool, str]], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the ids of each piece, with the separator before the first piece of a document."""
    for batch in in_batches(pieces):
        encodings = tokenizer.backend_tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
        for (first, _), encoding in zip(batch, encodings, strict=True):
            yield [separator_of(tokenizer), *encoding.ids] if first else encoding.ids


def in_batches(pieces: Iterable[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    """Yield lists of pieces with up to BATCH_CHARS characters, or one longer piece, for the tokenizer's threads."""
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
    """Return the token stream of ``sources``, (tokens,) uint16 or uint32, mapped from ``path``; write it if missing."""
    dtype = np.dtype("<u2" if len(tokenizer) <= 2**16 else "<u4")
    if not path.exists():
        say(f"tokenising {len(sources)} files into {path}")
        aside, counts = path.with_suffix(".tmp"), ReadCounts()
        with aside.open("wb") as file:
            for ids in encode(read_pieces(sources, options, counts), tokenizer):
                file.write(np.asarray(ids, dtype).tobytes())
        say(", ".join(f"{number} {what}" for what, number in asdict(counts).items()))
        flush(aside)
        aside.replace(path)
        flush(path.parent)
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def read_windows(tokens: np.ndarray, windows: Sequence[int], context: int) -> torch.Tensor:
    """Return inputs and, shifted by one, their targets: int64 (windows, context + 1)."""
    rows = [tokens[window * context : (window + 1) * context + 1] for window in windows]
    return torch.from_numpy(np.stack(rows).astype(np.int64))
