"""The dtype of an LM's keys: measured for a new store, and from then on the store's."""

from pathlib import Path

import pytest
import torch
from reporters import Saying
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from knnstore.datastore.store import Datastore
from knnstore.errors import MismatchError
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.lm import speed
from knnstore.lm.loading import load_model
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job, SerialRunner


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache folder, empty, on a processor that has bfloat16."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "cpu_has_bfloat16", lambda: True)
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch):
    """``measured(speed)`` replaces the measurement; returns the list of those that were made."""

    def replaced(result):
        made = []
        monkeypatch.setattr(speed, "bfloat16_speed", lambda model: made.append(result) or result)
        return made

    return replaced


def chosen(**options):
    return speed.choose_dtype(LmSpec("wiki-lm", device="cpu", **options))[0].dtype


@pytest.mark.parametrize(
    ("result", "dtype"), [(0.7, "float32"), (1.14, "float32"), (1.15, "bfloat16"), (2.0, "bfloat16"), (None, "float32")]
)
def test_bfloat16_has_to_be_15_percent_faster(cache, measured, result, dtype):
    measured(result)
    assert chosen() == dtype
    assert chosen(dtype="bfloat16") == "bfloat16"
    assert chosen(dtype="float32") == "float32"


def test_a_measurement_is_remembered_and_a_damaged_one_is_made_again(cache, measured):
    made = measured(2.0)
    assert [chosen(), chosen()] == ["bfloat16", "bfloat16"]
    assert len(made) == 1
    [file] = cache.rglob("*.json")
    for damage in (b"", b"[1]", b'{"speed": "fast"}', b'{"speed": NaN}', b"\xff"):
        file.write_bytes(damage)
        assert [chosen(), chosen()] == ["bfloat16", "bfloat16"]
    assert len(made) == 6


def test_without_a_home_or_a_cache_that_can_be_written_it_is_measured_every_time(
    cache, measured, monkeypatch, tmp_path
):
    made = measured(0.5)
    cache.write_text("no folder")
    assert [chosen(), chosen()] == ["float32", "float32"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert [chosen(), chosen()] == ["float32", "float32"]
    assert len(made) == 4


def test_the_first_of_two_processes_decides_for_both(cache):
    folder = speed.resolve_model("wiki-lm")

    def slower():
        assert speed.remembered_speed(folder, lambda: 2.0) == 2.0  # another process, which ends first
        return 0.5

    assert speed.remembered_speed(folder, slower) == 2.0


@pytest.mark.parametrize("kind", ["wiki-lm", "llama", "t5"])
def test_blocks_of_real_models_are_measured(kind, monkeypatch):
    monkeypatch.setattr(speed, "_MOST_RUNS", 1)
    size = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**size, intermediate_size=64)).to(torch.bfloat16)
    elif kind == "t5":
        model = T5ForConditionalGeneration(T5Config(vocab_size=100, d_model=32, d_ff=64, num_layers=2, num_heads=2))
    else:
        model = load_model(LmSpec("wiki-lm", dtype="float32", device="cpu")).model
    assert speed.bfloat16_speed(model.eval()) > 0


def test_a_model_without_blocks_is_not_measured():
    assert speed.bfloat16_speed(torch.nn.Linear(2, 2)) is None


@pytest.fixture
def run(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("A first text, of few words.")

    def ingested(runner=None, **options):
        reporter = Saying()
        given = {"corpus": ("text",), "store": "s", "context": 32, "holdout": 0, "device": "cpu"} | options
        ingest(IngestOptions(**given), Job(runner or SerialRunner(), reporter))
        computed = [segment.plan.compute for segment in Datastore(tmp_path / "s.knnstore").segments]
        return computed, "\n".join(reporter.said)

    return ingested


def test_an_append_takes_the_dtype_of_the_store_whatever_suits_its_processor(run, measured, tmp_path):
    measured(2.0)
    computed, said = run()
    assert computed == ["bfloat16 on cpu"]
    assert "dtype     bfloat16: 2.00 × the speed of float32 on this machine" in said
    (tmp_path / "text" / "b.txt").write_text("A second text.")
    measured(0.5)
    assert run()[0] == ["bfloat16 on cpu"] * 2
    (tmp_path / "text" / "c.txt").write_text("A third text.")
    with pytest.raises(MismatchError, match=r"made in bfloat16 \(now float32\): give dtype='bfloat16' or omit it"):
        run(dtype="float32")
    assert run(dtype="float32", allow_mismatch=True)[0] == ["bfloat16 on cpu"] * 2 + ["float32 on cpu"]


def test_a_run_that_goes_on_takes_the_dtype_that_it_began_with(run, measured, counting_runner):
    measured(2.0)
    with pytest.raises(InterruptedError):
        run(runner=counting_runner(most=3))
    measured(0.5)
    with pytest.raises(
        MismatchError, match=r"compute bfloat16 on cpu .*Run with the same ones .dtype='bfloat16' device="
    ):
        run(dtype="float32")
    assert run()[0] == ["bfloat16 on cpu"]
    assert run(overwrite=True, dtype="float32")[0] == ["float32 on cpu"]
