"""Text is text: the spelling of a special token in a document is no token, unless that is asked for."""

from dataclasses import replace

import pytest
from reporters import Saying
from transformers import AutoTokenizer

from knnstore.datastore.layout import SEGMENT_PLAN
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.stores import Stores
from knnstore.errors import MismatchError
from knnstore.files import write_json
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.lm.loading import load_model
from knnstore.lm.spec import SHIPPED_MODELS, LmSpec
from knnstore.lm.spellings import Spellings
from knnstore.records import to_json
from knnstore.scheduling import Job
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.texts import gather_texts

TEXT = "One text.<|endoftext|>Another, with <|endoftext|> twice.\n"


@pytest.fixture
def wiki():
    return load_model(LmSpec("wiki-lm", dtype="float32"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)

    def ingested(**options):
        reporter = Saying()
        given = {"corpus": ("text",), "store": "s", "context": 32, "holdout": 0, "dtype": "float32"} | options
        report = ingest(IngestOptions(**given), Job(reporter=reporter))
        store = Datastore(tmp_path / "s.knnstore")
        tokens = [segment.values(0, segment.rows).tolist() for segment in store.segments]
        return report, "\n".join(reporter.said), tokens, store

    return ingested


def test_a_spelling_is_ordinary_text_and_counted(run, wiki):
    report, said, [tokens], store = run()
    end = wiki.tokenizer.eos_token_id
    assert end not in tokens
    assert wiki.decode(tokens) == TEXT
    assert report.special_spellings == 2
    assert "2 spellings of special tokens in the text: taken as ordinary text (special_tokens=True" in said
    assert gather_texts(ScoreOptions(text=("text",)), Stores([store]), wiki)[1].ids.tolist() == tokens


def test_with_special_tokens_it_is_the_token_in_the_scored_text_too(run, wiki):
    report, said, [tokens], store = run(special_tokens=True)
    assert tokens.count(wiki.tokenizer.eos_token_id) == 2
    assert report.special_spellings == 2
    assert "taken as special tokens" in said
    assert gather_texts(ScoreOptions(text=("text",)), Stores([store]), wiki)[1].ids.tolist() == tokens


@pytest.mark.parametrize("choice", [True, False])
def test_an_append_follows_the_store(run, wiki, tmp_path, choice):
    run(special_tokens=choice)
    (tmp_path / "text" / "b.txt").write_text("A third.<|endoftext|>")
    [_, added] = run()[2]
    assert (wiki.tokenizer.eos_token_id in added) == choice


def test_an_append_that_asks_for_the_other_choice_is_refused(run):
    run()
    with pytest.raises(MismatchError, match="ordinary text: omit special_tokens=True"):
        run(special_tokens=True)


def test_a_store_from_before_there_was_a_choice_keeps_its_way(run, wiki, tmp_path, counting_runner):
    options = IngestOptions(corpus=("text",), store="s", context=32, holdout=0, dtype="float32")
    with pytest.raises(InterruptedError):
        ingest(options, Job(counting_runner(most=2)))
    plan = tmp_path / "s.knnstore" / "segments" / "0000" / SEGMENT_PLAN
    write_json(plan, to_json(replace(Segment(plan.parent).plan, special_tokens=None)))
    tokens = run()[2][0]
    assert tokens.count(wiki.tokenizer.eos_token_id) == 2
    (tmp_path / "text" / "b.txt").write_text("A third.<|endoftext|>")
    assert wiki.tokenizer.eos_token_id in run()[2][1]


def test_added_tokens_that_are_not_special_stay_tokens_and_prompts_keep_special_ones(wiki):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODELS / "wiki-lm")
    tokenizer.add_tokens(["<word>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    spellings = Spellings(tokenizer)
    text = "a <word> b <|im_start|> c"
    plain = spellings.ids(text, special=False, add_special_tokens=False)
    word, start = tokenizer.convert_tokens_to_ids(["<word>", "<|im_start|>"])
    assert word in plain and start not in plain
    assert tokenizer.decode(plain, clean_up_tokenization_spaces=False) == text
    assert start in spellings.ids(text, special=True, add_special_tokens=False)
    assert spellings.count(text) == 1
    assert wiki.tokenizer.eos_token_id in wiki.tokenise(TEXT)  # as a prompt is read


def test_a_vocabulary_that_has_the_spelling_as_a_piece_gives_no_special_token_either():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -3.0) for c in "▁abc</s>")]
    backend = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    spellings = Spellings(tokenizer)
    assert 1 not in spellings.ids("ab</s>c", special=False, add_special_tokens=False)
    side = spellings.ids("ab</s>c", special=False)
    assert side.count(1) == 1 and side[-1] == 1
    assert spellings.ids("ab</s>c", special=True).count(1) == 2
