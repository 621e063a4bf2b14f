"""A store and its LM as the page shows them: texts read once, an initial setting and an example."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from knnstore.attachment.attach import Joined
from knnstore.attachment.defaults import AttachedMixture, choose_mixture
from knnstore.errors import UsageError
from knnstore.explore.analysis import WeighedNeighbour, analyse
from knnstore.lm.streaming import Sampling
from knnstore.mixing.knn import target_probabilities
from knnstore.mixing.mixture import Mixture
from knnstore.neighbours import ABSENT
from knnstore.scoring.best_setting import choose
from knnstore.scoring.grid import make_grid
from knnstore.scoring.options import DEFAULT_K, ScoreOptions
from knnstore.scoring.tuned_record import load_tuned

if TYPE_CHECKING:
    from knnstore.api.store import Store
    from knnstore.explore.analysis import Analysis
    from knnstore.generation import Generation

MOST_TOKENS = 2000
_TUNING_TOKENS = 384
_EXAMPLE_TOKENS = 160
_KEPT_TEXTS = 8
_TOP_P = 0.95


class Explorer:
    """The operations of the page on a store. Recent texts are kept, so that moving a slider doesn't read them again."""

    def __init__(self, store: Store, *, nprobe: int | None = None, exact: bool = False) -> None:
        self.store = store
        self.k = min(DEFAULT_K, len(store))
        self.search = store.searching(nprobe=nprobe, exact=exact)
        self.analysed = lru_cache(maxsize=_KEPT_TEXTS)(self._analysed)

    def _analysed(self, text: str) -> Analysis:
        """Return the analysis of the first 2,000 tokens of a text. Raises UsageError for an empty text."""
        if not text.strip():
            raise UsageError("the text is empty: paste some text")
        stored, recipe = self._stored, self.store.datastore.manifest.key
        return analyse(
            self.store.lm,
            recipe,
            self.search,
            text,
            k=self.k,
            most_tokens=MOST_TOKENS,
            cache=stored.setting.cache if stored else 0,
            suffixes=stored.suffixes if stored else None,
        )

    @cached_property
    def _stored(self) -> AttachedMixture | None:
        """Return the mixture stored by ``knnstore tune``, if there is one."""
        return self._chosen() if load_tuned(self.store.datastore) else None

    def _chosen(self) -> AttachedMixture:
        return choose_mixture(self.store.datastore, self.search, k=None, lambda_=None, temperature=None)

    @cached_property
    def start(self) -> AttachedMixture:
        """Return the initial mixture of the page.

        It is the one stored by ``knnstore tune``, else one tuned on the beginning of a held-out document that isn't
        part of the example, else a cautious default.
        """
        if self._stored:
            return self._stored
        excerpt = self._heldout(0, 0.0, _TUNING_TOKENS)
        if len(excerpt) < _TUNING_TOKENS // 4:
            cautious = self._chosen()
            return replace(cautious, source=f"with {cautious.source}")
        read = self.analysed(self.store.lm.loaded.decode(excerpt))
        grid = make_grid(ScoreOptions(), self.k, read.neighbours)
        knn = target_probabilities(read.neighbours, read.ids, grid.ks, grid.temperatures)
        setting = choose(grid, read.log_lm, knn, None)
        return AttachedMixture(Mixture(setting), f"as tuned on {len(read.ids)} tokens of a held-out document")

    @cached_property
    def example(self) -> str:
        """Return a passage of a held-out document, which isn't in the store; empty if nothing is held out."""
        text = str(self.store.lm.loaded.decode(self._heldout(1, 0.6, _EXAMPLE_TOKENS)))
        return text[text.find(" ") + 1 : text.rfind(" ")].strip()  # whole words

    def write(self, prompt: str, most: int, heat: float, mixed_by: AttachedMixture) -> Generation:
        """Continue ``prompt`` with sampling temperature ``heat``; 0 chooses the most probable token."""
        store = self.store
        joined = Joined(store.lm, store.datastore.manifest.key, self.search, store.passages, mixed_by)
        return store.generate(prompt, most, sampling=Sampling(heat, top_p=_TOP_P), joined=joined)

    def sources(self, analysis: Analysis, token: int, mixture: Mixture, most: int) -> list[WeighedNeighbour]:
        """Return the neighbours of a token with the largest weights, with their passages."""
        votes = analysis.votes(token, mixture)
        rows = analysis.neighbours.rows
        assert rows is not None
        indices = [index for index in range(min(most, mixture.k)) if analysis.neighbours.values[token, index] != ABSENT]
        return [
            WeighedNeighbour(
                float(votes[index]),
                float(analysis.neighbours.distances[token, index]),
                self.store.passages.at(int(rows[token, index])),
            )
            for index in indices
        ]

    def _heldout(self, rank: int, share: float, tokens: int) -> list[int]:
        """Return at most ``tokens`` tokens of the ``rank``-th longest held-out document, from ``share`` of it on."""
        store = self.store.datastore
        places = [(segment, int(document)) for segment in store.segments for document in store.heldout(segment)]
        places.sort(key=lambda place: -int(place[0].documents.heldout_tokens[place[1]]))
        if not places:
            return []
        segment, document = places[min(rank, len(places) - 1)]
        ids = segment.heldout(document)
        first = int(share * len(ids))
        return [int(token) for token in ids[first : first + tokens]]
