"""knnstore's perplexities against an independent brute-force scorer, where that lies beside the checkout."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("corpus", ["wiki", "books"])
def test_perplexities_equal_the_independent_scorers_to_four_digits(repository, shared, tmp_path, corpus):
    scorer, texts = shared / "oracle" / "reference_scorer.py", shared / "corpora" / corpus
    for needed in (scorer, texts / "train", texts / "valid"):
        if not needed.exists():
            pytest.skip(f"needs {needed}")
    (tmp_path / "store").mkdir()
    for number, path in enumerate(sorted((texts / "train").glob("*.txt"))[:4]):
        (tmp_path / "store" / f"{number}.txt").write_text(path.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    text = sorted((texts / "valid").glob("*.txt"))[0].read_text(encoding="utf-8")[3000:8000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, repository / "tools" / "oracle.py", "--scorer", scorer]
    command += ["--corpus", tmp_path / "store", "--text", tmp_path / "text.txt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["tokens"] == result["scorer_tokens"] > 1000
    assert max(result["relative_difference"]["base"], result["relative_difference"]["exact"]) < 5e-5
    assert result["relative_difference"]["index"] < 5e-3
    # so small a store may do harm, but it has an effect: the LM alone would not pass for the mixture
    assert abs(result["knn"][0] / result["base"][0] - 1) > 0.01
