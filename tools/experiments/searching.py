"""Compare search methods by perplexity: number of probed lists, codes instead of keys, every key.

All use the mixture that ``score`` chose with the default nprobe of the index, so that only the search differs.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from typing import Any

from experiments.output import Output
from knnstore.datastore.store import Datastore, store_path
from knnstore.lm.spec import default_model
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions

_PROBES = (1, 2, 4, 8, 16, 32, 64, 128)


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("--store", required=True, help="indexed store")
    command.add_argument("--text", nargs="+", default=[], help="text to score; default: the store's held-out text")
    command.add_argument("--model", default=default_model())
    command.add_argument("--probes", nargs="+", type=int, default=_PROBES, help="numbers of lists to search")


def run(arguments: Namespace, output: Output) -> None:
    store = Datastore(store_path(arguments.store))
    asked = ScoreOptions(text=tuple(arguments.text), model=arguments.model, tuned=False)
    first = output.computed("as it comes", lambda: score(asked, store).to_json())
    knn = first["knn"]
    fixed = replace(asked, tuned=None, k=knn["k"], lambda_=knn["lambda"], temperature=knn["temperature"])
    ways = {f"{n} lists": replace(fixed, nprobe=n) for n in arguments.probes}
    ways |= {
        f"{knn['nprobe']} lists, codes alone": replace(fixed, quantised=True),
        "every key": replace(fixed, exact=True),
    }
    measured = {name: output.computed(name, partial(_measure, store, way)) for name, way in ways.items()}
    best = measured["every key"]["perplexity"]
    rows = [["search", "perplexity", "against every key", "queries/s"]]
    for name, result in measured.items():
        more = f"{100 * (result['perplexity'] / best - 1):+.2f} %"
        rows.append([name, f"{result['perplexity']:.3f}", more, f"{result['tokens'] / result['search']:,.0f}"])
    about = f"{store.name}: {store.live_rows:,} keys, {measured['every key']['tokens']:,} tokens; "
    about += f"LM alone {first['base']['perplexity']:.2f}, k {knn['k']}, λ {knn['lambda']:g}, T {knn['temperature']:g}"
    output.show(rows, about)

    def draw(axes: Any) -> None:
        probed = [measured[f"{n} lists"] for n in arguments.probes]
        axes.plot(arguments.probes, [result["perplexity"] for result in probed], marker="o", color="#2a9d6f")
        axes.axhline(best, color="#888", linestyle=":")
        axes.set(xscale="log", xlabel="lists searched", ylabel="perplexity")

    output.figure(draw)


def _measure(store: Datastore, options: ScoreOptions) -> dict[str, float]:
    report = score(options, store)
    return {
        "perplexity": report.knn.perplexity,
        "tokens": report.tokens,
        "search": report.seconds.search,
    }
