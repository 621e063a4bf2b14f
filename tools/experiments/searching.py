"""How a store is searched, against perplexity: the lists that are probed, codes in place of keys, every key.

The mixture is that which ``score`` chose with the index's own nprobe, so nothing but the search differs.
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
    command.add_argument("--store", required=True, help="an indexed store")
    command.add_argument("--text", nargs="+", default=[], help="text to score; default: what the store held out")
    command.add_argument("--model", default=default_model())
    command.add_argument("--probes", nargs="+", type=int, default=_PROBES, help="lists that a query searches")


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
    found = {name: output.computed(name, partial(_measure, store, way)) for name, way in ways.items()}
    best = found["every key"]["perplexity"]
    rows = [["search", "perplexity", "against every key", "queries/s"]]
    for name, one in found.items():
        more = f"{100 * (one['perplexity'] / best - 1):+.2f} %"
        rows.append([name, f"{one['perplexity']:.3f}", more, f"{one['tokens'] / one['search']:,.0f}"])
    about = f"{store.name}: {store.live_rows:,} keys, {found['every key']['tokens']:,} tokens; "
    about += f"LM alone {first['base']['perplexity']:.2f}, k {knn['k']}, λ {knn['lambda']:g}, T {knn['temperature']:g}"
    output.show(rows, about)

    def draw(axes: Any) -> None:
        probed = [found[f"{n} lists"] for n in arguments.probes]
        axes.plot(arguments.probes, [one["perplexity"] for one in probed], marker="o", color="#2a9d6f")
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
