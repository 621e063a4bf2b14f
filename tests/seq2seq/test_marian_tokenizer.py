"""Marian's own tokenizer: two sentencepiece models, one for either side, over one vocabulary."""

import json

import numpy as np
import pytest
from translation import RADIO, invoke, numbers, tiny_model

from knnstore.datastore.store import Datastore

sentencepiece = pytest.importorskip("sentencepiece", reason="Marian's tokenizer needs it: pip install sentencepiece")


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A folder with ``model/``, random weights and a real tokenizer, and its pairs as ``pairs.tsv``."""
    from transformers import MarianTokenizer

    folder = tmp_path_factory.mktemp("marian")
    pairs = numbers(60, RADIO, 5)
    pieces = []
    for side, name in enumerate(("source", "target")):
        (folder / f"{name}.txt").write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / f"{name}.txt"),
            model_prefix=str(folder / name),
            vocab_size=22 + 20 * side,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))
        pieces += [model.id_to_piece(number) for number in range(3, model.get_piece_size())]
    vocabulary = ["</s>", "<unk>", *dict.fromkeys(pieces), "<pad>"]
    numbered = {piece: number for number, piece in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(numbered), encoding="utf-8")
    tokenizer = MarianTokenizer(
        source_spm=str(folder / "source.model"),
        target_spm=str(folder / "target.model"),
        vocab=str(folder / "vocab.json"),
    )
    ends = {"pad_token_id": numbered["<pad>"], "decoder_start_token_id": numbered["<pad>"], "eos_token_id": 0}
    tiny_model("marian", vocab_size=len(vocabulary), **ends).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    return folder, tokenizer, pairs


def test_each_side_is_tokenised_by_its_own_model_and_scored(marian):
    folder, tokenizer, pairs = marian
    named = ("--model", folder / "model", "--store", folder / "radio", "--quiet")
    arguments = ("--task", "seq2seq", "--corpus", folder / "pairs.tsv", "--holdout", 0, "--workers", 0)
    done = invoke("ingest", *arguments, *named)
    assert done.exit_code == 0, done.output
    segment = Datastore(folder / "radio.knnstore").segments[0]
    assert len(segment.documents) == len(pairs)
    for document, (source, target) in enumerate(pairs):
        assert segment.source(document).tolist() == tokenizer(source).input_ids
        first, count = int(segment.documents.first_row[document]), int(segment.documents.tokens[document])
        values = segment.values(first, first + count).tolist()
        assert values == tokenizer(text_target=target).input_ids
        assert tokenizer.decode(values, skip_special_tokens=True) == target
    assert not np.array_equal(tokenizer(pairs[0][1]).input_ids, tokenizer(text_target=pairs[0][1]).input_ids)
    setting = ("--k", 8, "--lambda", 0.5, "--temperature", 1, "--exact", "--json")
    done = invoke("score", "--text", folder / "pairs.tsv", *setting, *named)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["knn"]["perplexity"] < 0.5 * result["base"]["perplexity"]  # it is scored on what it stores
