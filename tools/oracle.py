"""Compare knnstore's perplexity with an independent brute-force scorer on the same text, corpus and windows.

    python tools/oracle.py --scorer reference_scorer.py --corpus DIR --text FILE… [--model wiki-lm] [--store-bytes N]

Ingests the corpus (float16 keys, float32 arithmetic, nothing held out) with ``--special-tokens``, because the scorer's
tokenizer treats spelled-out special tokens as special. Scores the text with ``--exact`` and fixed k, λ and T, and runs
the scorer, a script that takes ``--model --store --eval --k --lam --temp`` and prints JSON, on the same files. Prints
both perplexities, their relative difference, and the difference between the default index and exact search. Exits with
1 if the exact ones differ in the fourth significant digit, or the index by more than 0.5 %.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import knnstore
from knnstore.scoring.result import ScoreReport

K, LAMBDA, TEMPERATURE = 1024, 0.25, 20.0
MOST_EXACT, MOST_INDEXED = 5e-5, 5e-3


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        corpus = limited(arguments.corpus, arguments.store_bytes)
        measured = knnstore_scores(work, corpus, arguments.text, arguments.model)
        reference = scorer_perplexities(work, corpus, arguments)
    alone, mixed = measured["exact"].base.perplexity, measured["exact"].knn.perplexity
    exact, base = abs(mixed / reference["knn"] - 1), abs(alone / reference["base"] - 1)
    indexed = abs(measured["index"].knn.perplexity / mixed - 1)
    result = {
        "tokens": measured["exact"].tokens,
        "scorer_tokens": reference["targets"],
        "base": [alone, reference["base"]],
        "knn": [mixed, reference["knn"]],
        "index": measured["index"].knn.perplexity,
        "relative_difference": {"base": base, "exact": exact, "index": indexed},
    }
    print(f"tokens   {result['tokens']:,}; k {K}, λ {LAMBDA}, T {TEMPERATURE:g}")
    print("              knnstore      scorer   relative difference")
    print(f"LM alone  {result['base'][0]:12.4f}{result['base'][1]:12.4f}   {base:.1e}")
    print(f"exact     {result['knn'][0]:12.4f}{result['knn'][1]:12.4f}   {exact:.1e}")
    print(f"index     {result['index']:12.4f}               {indexed:.1e} from the exact one")
    print(json.dumps(result))
    same = result["tokens"] == result["scorer_tokens"]
    sys.exit(0 if same and max(exact, base) < MOST_EXACT and indexed < MOST_INDEXED else 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="wiki-lm")
    parser.add_argument("--store-bytes", type=float, default=2e6, help="maximum bytes of the corpus to use")
    return parser.parse_args()


def limited(corpus: Path, most: float) -> list[Path]:
    """Return the first files of a folder by name, up to ``most`` bytes, at least one."""
    chosen: list[Path] = []
    for path in sorted(corpus.glob("*.txt")):
        if chosen and sum(file.stat().st_size for file in [*chosen, path]) > most:
            break
        chosen.append(path)
    return chosen


def knnstore_scores(work: Path, corpus: list[Path], text: list[Path], model: str) -> dict[str, ScoreReport]:
    store = work / "s.knnstore"
    knnstore.ingest(
        corpus,
        store=store,
        model=model,
        workers=0,
        key_dtype="float16",
        dtype="float32",
        holdout=0,
        special_tokens=True,
    )
    knnstore.index(store)
    score = partial(knnstore.score, store, text=text, model=model, k=K, lambda_=LAMBDA, temperature=TEMPERATURE)
    return {"exact": score(exact=True), "index": score()}


def scorer_perplexities(work: Path, corpus: list[Path], arguments: argparse.Namespace) -> dict[str, Any]:
    from knnstore.lm.spec import resolve_model

    lists = {"store": corpus, "eval": arguments.text}
    for name, paths in lists.items():
        (work / f"{name}.list").write_text("\n".join(str(path.resolve()) for path in paths))
    options = ["--model", str(resolve_model(arguments.model)), "--store", "store.list", "--eval", "eval.list"]
    options += ["--k", str(K), "--lam", str(LAMBDA), "--temp", str(TEMPERATURE), "--json", "result.json"]
    subprocess.run(
        [sys.executable, str(arguments.scorer.resolve()), *options], cwd=work, check=True, stdout=subprocess.DEVNULL
    )
    result = json.loads((work / "result.json").read_text())
    (knn,) = result["knn_ppl"].values()
    return {"base": result["base_ppl"], "knn": knn, "targets": result["targets"]}


if __name__ == "__main__":
    main()
