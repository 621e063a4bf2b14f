"""The LM Evaluation Harness on a local task, with a store."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from click.testing import CliRunner

from knnstore.cli import main

pytest.importorskip("lm_eval", reason="the harness isn't installed: pip install 'knnstore[eval]'")
pytest.importorskip("accelerate", reason="the harness's model hf needs it: pip install 'knnstore[eval]'")

# shorter than a window each, so that the harness's windows and ours are the same
TEXTS = [
    "The standard type hierarchy. Below is a list of the types that are built into Python.",
    "Objects are Python's abstraction for data. All data in a Python program is represented by objects or by relations "
    "between objects.",
    "A class definition defines a class object. It is an executable statement .",
]
SETTING = {"k": 16, "lambda_": 0.4, "temperature": 10.0}
TASK = """
task: local_texts
dataset_path: json
dataset_kwargs: {data_files: {test: texts.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""


@pytest.fixture(scope="module")
def here(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "books.knnstore").symlink_to(built[0] / "books.knnstore")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    (folder / "local_texts.yaml").write_text(TASK, encoding="utf-8")
    return folder


def test_the_harness_finds_the_perplexity_that_score_finds(here, knnstore, monkeypatch):
    monkeypatch.chdir(here)
    setting = ["--k", "16", "--lambda", "0.4", "--temperature", "10"]
    done = CliRunner().invoke(
        main, ["score", "--store", "books", "--text", "texts.jsonl", *setting, "--json", "--quiet"]
    )
    assert done.exit_code == 0, done.output
    ours = json.loads(done.stdout)
    arguments = ",".join(["pretrained=wiki-lm", "store=books", *(f"{name}={value}" for name, value in SETTING.items())])
    told = ["--tasks", "local_texts", "--include_path", ".", "--output_path", "out", "--batch_size", "3"]
    # as typed, in a process of its own: the harness takes over logging and the command line
    ran = knnstore(here, "evaluate", "--model_args", arguments, *told, HF_DATASETS_OFFLINE="1", HF_HOME=str(here))
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "local_texts" in ran.stdout
    (path,) = (here / "out").rglob("results_*.json")
    theirs = json.loads(path.read_text(encoding="utf-8"))["results"]["local_texts"]
    words = sum(len(text.split()) for text in TEXTS)
    word_perplexity = ours["knn"]["perplexity"] ** (ours["tokens"] / words)
    assert theirs["word_perplexity,none"] == pytest.approx(word_perplexity, rel=5e-4)  # a power of what agrees to 1e-4
    assert theirs["bits_per_byte,none"] == pytest.approx(ours["knn"]["bits_per_byte"], rel=1e-4)
    assert abs(ours["knn"]["perplexity"] / ours["base"]["perplexity"] - 1) > 0.1


def test_the_entry_point_names_the_model_that_the_harness_registers(repository):
    from lm_eval.api.registry import model_registry

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = EntryPoints(
        EntryPoint(name, value, "lm_eval.models") for name, value in project["entry-points"]["lm_eval.models"].items()
    )
    # what a harness that reads entry points does: a placeholder first, the class once it is asked for
    if found.name not in model_registry:
        model_registry.register(found.name, target=found.value)
    assert model_registry.get(found.name) is found.load()
    assert found.load().__name__ == "KnnstoreLM"


def test_a_missing_harness_is_one_sentence():
    code = "import sys; sys.modules['lm_eval'] = None; from knnstore.cli import main; main(['evaluate', '--tasks=x'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "Error: lm_eval isn't installed: pip install 'knnstore[eval]'\n")
