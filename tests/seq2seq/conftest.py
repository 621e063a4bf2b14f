"""A translation model that is trained, and a store of another way to say the same."""

import pytest
from translation import RADIO, invoke, numbers, tiny_model, train, word_tokenizer


@pytest.fixture(scope="session")
def radio(tmp_path_factory):
    """A folder with ``model/``, parallel files of two splits, and the store ``radio`` of the first, with an index."""
    folder = tmp_path_factory.mktemp("radio")
    tokenizer = word_tokenizer()
    model = train(tiny_model("marian", encoder_layers=1, decoder_layers=1), tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for split, count, seed in (("train", 300, 1), ("test", 40, 2)):
        sources, targets = zip(*numbers(count, RADIO, seed), strict=True)
        (folder / f"{split}.digits").write_text("\n".join(sources) + "\n", encoding="utf-8")
        (folder / f"{split}.words").write_text("\n".join(targets) + "\n", encoding="utf-8")
    files = ("--source", folder / "train.digits", "--target", folder / "train.words")
    where = ("--model", folder / "model", "--store", folder / "radio", "--workers", 0, "--quiet")
    done = invoke("ingest", "--task", "seq2seq", *files, *where, "--holdout", 0.05)
    assert done.exit_code == 0, done.output
    assert invoke("index", "--store", folder / "radio", "--quiet").exit_code == 0
    return folder
