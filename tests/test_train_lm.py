"""tools/train_lm.py: a folder of text becomes a model, however often the training is killed on the way."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from knnstore.errors import NumericsError, UsageError

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "train_lm.py"
sys.path.insert(0, str(TOOL.parent))

import train_lm  # noqa: E402
import training.folder  # noqa: E402
import training.progress  # noqa: E402
import training.schedule  # noqa: E402
import training.tokens  # noqa: E402
import training.trainer  # noqa: E402
from training.recipe import make_recipe  # noqa: E402

TINY = "--vocab 300 --layers 2 --width 32 --heads 2 --context 32 --batch-tokens 256 --precision fp32 --dtype fp32"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the killed subprocess has: the number of threads changes the last bits
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name in sorted(topics)[:12]:
        (folder / f"{name.replace('/', '-')}.txt").write_text(topics[name])
    return folder


def command(texts, out, extra=""):
    return ["--corpus", str(texts), "--out", str(out), "--no-compile", *TINY.split(), *extra.split()]


def train(texts, out, extra="--steps 40 --save-every 7"):
    return train_lm.main(command(texts, out, extra))


@pytest.fixture(scope="module")
def finished(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "lm"
    valid = " ".join(str(path) for path in sorted(texts.iterdir())[:2])
    assert train(texts, out, f"--steps 40 --save-every 7 --eval-every 15 --valid {valid}") == 0
    return out


def log_of(out):
    return [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]


def weights(out):
    return (out / "model.safetensors").read_bytes()


# What comes out


def test_transformers_loads_what_was_trained(finished):
    tokenizer, model = AutoTokenizer.from_pretrained(finished), AutoModelForCausalLM.from_pretrained(finished)
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.bos_token_id == model.config.bos_token_id == model.config.eos_token_id
    assert model.config.vocab_size == len(tokenizer) == 300
    text = "naïve  “text”\n\twith 鳥 and\r\nspaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_the_loss_falls_and_the_log_tells_it(finished):
    losses = [line["loss"] for line in log_of(finished) if "loss" in line]
    assert losses[0] < math.log(300) + 0.5  # not worse than guessing
    assert losses[-1] < losses[0] - 0.2
    assert [line["step"] for line in log_of(finished)] == [10, 15, 20, 30, 30, 40]


def test_the_perplexity_is_that_of_the_saved_model_and_leaves_separators_out(finished, texts):
    tokenizer, model = AutoTokenizer.from_pretrained(finished), AutoModelForCausalLM.from_pretrained(finished)
    stream = []
    for path in sorted(texts.iterdir())[:2]:
        stream += [0, *tokenizer(path.read_text())["input_ids"]]
    losses = []
    for start in range(0, len(stream) - 1, 32):
        window = torch.tensor(stream[start : start + 33])
        with torch.no_grad():
            logs = model(window[None, :-1]).logits[0].log_softmax(-1)
        losses += [-float(logs[i, y]) for i, y in enumerate(window[1:].tolist()) if y != 0]
    result = json.loads((finished / "result.json").read_text())
    assert result["valid_tokens"] == len(losses) == len(stream) - 2
    assert result["valid_perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


def test_fp16_weights_are_scored_as_they_are_saved(texts, tmp_path, capsys):
    (valid, *_) = sorted(texts.iterdir())
    assert train(texts, tmp_path / "lm", f"--steps 2 --dtype fp16 --valid {valid}") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    ids = AutoTokenizer.from_pretrained(tmp_path / "lm")(valid.read_text())["input_ids"]
    value, _ = training.trainer.perplexity(model.float(), np.array([0, *ids]), context=32, separator=0, micro=8)
    assert value == json.loads(capsys.readouterr().out)["valid_perplexity"]


def test_a_tokenizer_is_reused_as_it_is(finished, texts, tmp_path):
    arguments = [word for word in command(texts, tmp_path / "lm", "--steps 1") if word not in ("--vocab", "300")]
    assert train_lm.main([*arguments, "--tokenizer", str(finished)]) == 0
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (finished, tmp_path / "lm"))
    assert old.get_vocab() == new.get_vocab()


def test_nothing_of_the_work_is_left_and_nothing_is_pickled(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "result.json"} <= names
    assert "work" not in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".tmp"))]


# Killed and run again


class Killed(BaseException):
    pass


def test_a_run_stopped_anywhere_gives_the_uninterrupted_weights(finished, texts, tmp_path, monkeypatch):
    out, step_of, steps = tmp_path / "lm", training.trainer.Trainer.step, []

    def step(trainer, number, loss_of):
        steps.append(number)
        if len(steps) in (4, 15, 30):
            raise Killed
        return step_of(trainer, number, loss_of)

    monkeypatch.setattr(training.trainer.Trainer, "step", step)
    for _ in range(3):
        with pytest.raises(Killed):
            train(texts, out)
    assert train(texts, out) == 0
    assert steps == [*range(4), *range(11), *range(7, 22), *range(21, 40)]
    assert weights(out) == weights(finished)
    losses = [
        {line["step"]: line["learning_rate"] for line in log_of(run) if "loss" in line} for run in (out, finished)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_run_killed_with_signal_9_gives_the_uninterrupted_weights(finished, texts, tmp_path):
    out = tmp_path / "lm"
    checkpoint = out / "work" / "checkpoint.safetensors"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{TOOL.parent}"}
    code = (
        "import pathlib, sys, threading, train_lm, training.trainer\n"
        "step, checkpoint = training.trainer.Trainer.step, pathlib.Path(sys.argv.pop(1))\n"
        "def wait_after_checkpoint(*a):\n"
        "    return threading.Event().wait() if checkpoint.exists() else step(*a)\n"  # for the kill
        "training.trainer.Trainer.step = wait_after_checkpoint\n"
        "sys.exit(train_lm.main(sys.argv[1:]))"
    )
    arguments = command(texts, out, "--steps 40 --save-every 7")
    process = subprocess.Popen([sys.executable, "-c", code, checkpoint, *arguments], env=environment)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (out / "result.json").exists()
    assert train(texts, out) == 0
    assert weights(out) == weights(finished)


def test_a_kill_while_the_model_is_being_saved_is_mended(finished, texts, tmp_path, monkeypatch):
    def fail(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training.folder, "sync_files", lambda folder: fail() if folder.name == "lm" else None)
        with pytest.raises(Killed):
            train(texts, tmp_path / "lm")
    (tmp_path / "lm" / "model.safetensors").write_bytes(b"torn")
    assert train(texts, tmp_path / "lm") == 0
    assert weights(tmp_path / "lm") == weights(finished)


def test_a_finished_run_says_so_and_does_nothing(texts, tmp_path, capsys):
    out = tmp_path / "lm"
    assert train(texts, out, "--steps 1") == 0
    first = capsys.readouterr().out
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert train(texts, out, "--steps 1") == 0
    again = capsys.readouterr()
    assert "is finished" in again.err
    assert again.out == first
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.slow
def test_the_tokenizer_doesnt_depend_on_the_number_of_threads(texts, finished, tmp_path):
    code = (
        "import sys, training.tokens\n"
        "from knnstore.corpus import ReadOptions, find_sources\n"
        "sources = find_sources(sys.argv[1:])\n"
        "print(training.tokens.train_tokenizer(sources, ReadOptions(), 300).to_str())"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{TOOL.parent}", "RAYON_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(texts)], env=environment, capture_output=True, text=True, check=True
    )
    saved = json.loads((finished / "tokenizer.json").read_text())
    assert json.loads(run.stdout)["model"]["merges"] == saved["model"]["merges"]


# Mistakes


@pytest.mark.parametrize("change", ["--lr 0.002", "--width 64", "--steps 41", "--seed 1", "--dtype fp16"])
def test_a_resumed_run_with_another_setting_is_refused_by_its_name(change, finished, texts, tmp_path, capsys):
    valid = " ".join(str(path) for path in sorted(texts.iterdir())[:2])
    out = shutil.copytree(finished, tmp_path / "lm")
    assert train(texts, out, f"--steps 40 --valid {valid} {change}") == 2
    message = capsys.readouterr().err
    name, value = change.split()
    assert f"{name} " in message
    assert f"and {value} now" in message
    assert message.count("now") == 1  # nothing else differs


def test_a_corpus_that_grew_is_another_corpus(texts, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for path in texts.iterdir():
        (tmp_path / "texts" / path.name).write_bytes(path.read_bytes())
    assert train(tmp_path / "texts", tmp_path / "lm", "--steps 1") == 0
    (tmp_path / "texts" / "more.txt").write_text("more")
    assert train(tmp_path / "texts", tmp_path / "lm", "--steps 1") == 2
    assert "--corpus 12 files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("--vocab 256", "--vocab 256"),
        ("--width 33", "--width 33"),
        ("--steps 5 --epochs 2", "--steps and --epochs"),
        ("--steps 5 --warmup 5", "--warmup 5"),
        ("--batch-tokens 31", "--batch-tokens 31"),
        ("--lr nan", "--lr nan"),
        ("--tokenizer /no/such", "--tokenizer"),
        ("--device tpu9", "--device tpu9"),
        ("--context 100000 --batch-tokens 100000", "--corpus has"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(extra, words, texts, tmp_path, capsys):
    assert train(texts, tmp_path / "lm", extra) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_lm: ")]
    assert words in line


def test_a_folder_of_something_else_is_left_alone(texts, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert train(texts, tmp_path) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_text_that_isnt_utf8_is_named_and_the_mended_command_runs(texts, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "bad.txt").write_bytes(b"abc\xff" * 1000)
    assert train(tmp_path / "texts", tmp_path / "lm", "--steps 1") == 2
    assert "bad.txt" in capsys.readouterr().err
    assert train(tmp_path / "texts", tmp_path / "lm", "--steps 1 --errors replace") == 0


def test_a_mistake_found_late_leaves_no_token_files_for_other_settings(texts, tmp_path):
    assert train(texts, tmp_path / "lm", "--steps 5 --warmup 5") == 2
    assert train(texts, tmp_path / "lm", "--steps 5 --warmup 4 --vocab 290") == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "lm")) == 290


def test_a_loss_that_isnt_finite_stops_the_run_before_it_is_saved(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        training.trainer.Trainer, "loss", lambda trainer, windows: trainer.model.lm_head.weight.sum() * math.nan
    )
    assert train(texts, tmp_path / "lm") == NumericsError.exit_code
    assert "at step 0" in capsys.readouterr().err
    assert not (tmp_path / "lm" / "work" / "checkpoint.safetensors").exists()


def test_a_damaged_checkpoint_is_named(texts, tmp_path, capsys):
    (tmp_path / "lm" / "work").mkdir(parents=True)
    (tmp_path / "lm" / "work" / "checkpoint.safetensors").write_bytes(b"torn")
    assert train(texts, tmp_path / "lm") == 1
    assert "checkpoint.safetensors is not what was saved" in capsys.readouterr().err


def test_without_a_compiler_the_run_goes_on_and_says_so(texts, tmp_path, monkeypatch, capsys):
    def refuse(_):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", refuse)
    assert train(texts, tmp_path / "lm", "--steps 1 --compile") == 0
    assert "the model runs as it is: no C++ compiler\n" in capsys.readouterr().err


# Decisions


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth():
    rates = [training.schedule.learning_rate(step, 100, 10, 1.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_every_epoch_sees_every_window_once(windows, batch, seed):
    steps = -(-3 * windows // batch)
    seen = [window for step in range(steps) for window in training.schedule.step_windows(step, batch, windows, seed)]
    for epoch in range(3):
        assert sorted(seen[epoch * windows : (epoch + 1) * windows]) == list(range(windows))


def test_the_order_of_the_windows_never_changes():
    assert training.schedule.step_windows(1, 4, 10, 7) == [6, 9, 4, 3]  # from the first release on


@given(st.integers(2, 200), st.integers(2, 9), st.integers(1, 5))
def test_evaluation_predicts_every_token_but_the_first_once(tokens, context, micro):
    stream = np.arange(tokens, dtype="<u2")
    batches = list(training.trainer.evaluation_windows(stream, context, micro))
    assert [int(y) for batch in batches for y in batch[:, 1:].flatten()] == list(range(1, tokens))
    assert all(len(batch) <= micro and batch.shape[1] <= context + 1 for batch in batches)


@given(st.integers(1, 300), st.integers(0, 400))
def test_all_passes_of_a_step_have_one_shape(number, limit):
    size = training.schedule.largest_divisor(number, limit)
    assert number % size == 0
    assert size <= max(1, limit)


def test_a_log_is_cut_back_to_its_checkpoint():
    log = '{"step": 10}\n{"step": 20}\n{"step": 3'
    assert training.progress.kept_lines(log, 10) == '{"step": 10}\n'
    assert training.progress.kept_lines(log, 99) == '{"step": 10}\n{"step": 20}\n'


def test_a_document_starts_with_the_separator_and_its_pieces_follow(finished):
    tokenizer = AutoTokenizer.from_pretrained(finished)
    ids = [*training.tokens.encode([(True, "one "), (False, "two"), (True, "three")], tokenizer)]
    assert [piece[0] == 0 for piece in ids] == [True, False, True]
    assert tokenizer.decode([*itertools.chain(*ids)], skip_special_tokens=True) == "one twothree"


@given(st.lists(st.integers(0, 2_000_000), max_size=12))
def test_a_batch_for_the_tokenizer_is_small_or_one_piece(sizes):
    pieces = [(True, range(size)) for size in sizes]  # all that counts here is their length
    batches = list(training.tokens.in_batches(pieces))
    assert [piece for batch in batches for piece in batch] == pieces
    assert all(
        len(batch) == 1 or sum(len(text) for _, text in batch) <= training.tokens.BATCH_CHARS for batch in batches
    )


def test_a_plan_fits_its_logits_and_counts_its_epochs(texts):
    args = train_lm.command_line().parse_args(command(texts, "lm", "--epochs 2"))
    recipe = make_recipe(args, (), (), torch.device("cpu"))
    plan = training.schedule.plan_run(recipe, tokens=32 * 100 + 1, vocab=300, logits=32 * 300 * 4)
    assert plan == training.schedule.Plan(steps=25, warmup=2, windows=100, batch=8, micro=4)
    with pytest.raises(UsageError, match="has 32 tokens"):
        training.schedule.plan_run(recipe, tokens=32, vocab=300, logits=1)
