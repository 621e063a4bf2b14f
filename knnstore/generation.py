"""Generate text with an LM and a store, token by token, with the sources of each token's probability."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.attachment.attach import Joined, attach_store
from knnstore.attachment.mixer import MixedStep
from knnstore.attribution import Attribution, Ledger
from knnstore.errors import UsageError
from knnstore.lm.asked import asked_otherwise, asked_penalties, asked_sampling
from knnstore.lm.streaming import Sampling, TextStream, in_thread, write_tokens
from knnstore.mixing.mixture import Credit, Mixture
from knnstore.mixing.setting import Setting
from knnstore.neighbours import Neighbours
from knnstore.passages import Passage


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """A generated token. ``text``: the text it completes; empty if a character is still incomplete.

    ``p``, ``p_lm`` and ``p_store``: its probability by mixture, LM and store, before any sampling. ``store_share``: the
    share of ``p`` from the store's neighbours, λ p_store / p with constants. ``row``: the neighbour with this token
    that contributed most, and ``row_share`` its share of ``p``; None if no neighbour has the token.
    """

    token_id: int
    text: str
    p: float
    p_lm: float
    p_store: float
    store_share: float
    row: int | None
    row_share: float


class Generation:
    """Generates text: iterate over its tokens; ``text`` and ``attribution`` cover the tokens generated so far.

    An encoder-decoder model generates the target of the prompt, such as its translation. The LM is attached to the
    store only in the thread that generates. To stop early, close the iterator.

    ``sampling``: None for the most probable token each time, regardless of the model's generation_config.json.
    ``generation_config``: apply the penalties and bans of that file, and its sampling if ``sampling`` is None.
    """

    def __init__(
        self,
        joined: Joined,
        prompt: str,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        *,
        generation_config: bool = False,
    ) -> None:
        if max_new_tokens < 1:
            raise UsageError(f"max-new-tokens {max_new_tokens}: give at least 1")
        self.prompt = prompt
        self.tokens: list[WrittenToken] = []
        self._most = max_new_tokens
        model = joined.model.loaded.model
        self._sampling = sampling or (Sampling.asked_by(model) if generation_config else Sampling())
        self.generation_config = generation_config
        self._joined = joined
        self._ledger = Ledger(joined.passages)

    def __iter__(self) -> Iterator[WrittenToken]:
        """Generate tokens; a second iteration starts again from the prompt."""
        self.tokens.clear()
        self._ledger = Ledger(self._joined.passages)
        for token, neighbours, credit in in_thread(self._write):
            self._ledger.add(neighbours, credit)
            self.tokens.append(token)
            yield token

    @property
    def setting(self) -> Setting:
        """Return the constants of the mixture."""
        return self._joined.setting

    @property
    def gated(self) -> bool:
        """Return whether a gate weighs each token instead of the constants."""
        return self._joined.mixed_by.mixture.gate is not None

    @property
    def source(self) -> str:
        """Return the origin of the mixture as text."""
        return self._joined.mixed_by.source

    @property
    def asked(self) -> dict[str, Any]:
        """Return the requests of the model's generation_config.json that affect a text: sampling, penalties, bans."""
        model = self._joined.model.loaded.model
        return asked_sampling(model) | asked_penalties(model)

    @property
    def not_applicable(self) -> dict[str, Any]:
        """Return the other requests of that file, such as beams, which don't apply to text generated token by token."""
        return asked_otherwise(self._joined.model.loaded.model)

    @property
    def text(self) -> str:
        """Return the text generated after the prompt."""
        return "".join(token.text for token in self.tokens)

    @property
    def attribution(self) -> Attribution:
        """Return the sources of the probability of the tokens generated so far."""
        return self._ledger.attribution()

    def cited(self, token: WrittenToken) -> Passage | None:
        """Return the passage that contributed most to a token's probability; None if no passage has the token."""
        return None if token.row is None else self._joined.passages.at(token.row)

    def _write(self, emit: Callable[[tuple[WrittenToken, Neighbours, Credit]], None]) -> None:
        model = self._joined.model
        if model.loaded.task == "seq2seq":
            ids, stream = model.loaded.tokenise_source(self.prompt).tolist(), TextStream(model.loaded, [])
        else:
            ids = [model.loaded.bos, *model.loaded.tokenise(self.prompt).tolist()]
            stream = TextStream(model.loaded, ids)
        steps: list[MixedStep] = []
        mixed_by = self._joined.mixed_by

        def take(token: int) -> None:
            emit(_explained(token, stream.add(token), steps.pop(), mixed_by.mixture))

        with attach_store(model, self._joined.search, mixed_by, on_step=steps.append, only_here=True):
            write_tokens(model.loaded, ids, self._most, self._sampling, take, penalties=self.generation_config)


def _explained(token: int, text: str, step: MixedStep, mixture: Mixture) -> tuple[WrittenToken, Neighbours, Credit]:
    neighbours, log_lm = step.neighbours, step.log_lm[:, token].double().cpu().numpy()
    credit = mixture.credit(step.evidence, np.array([token]), log_lm)
    best = int(np.argmax(credit.credit[0]))
    row_share = float(credit.credit[0, best])
    assert neighbours.rows is not None
    written = WrittenToken(
        token_id=token,
        text=text,
        p=float(credit.p[0]),
        p_lm=float(credit.p_lm[0]),
        p_store=float(credit.p_store[0]),
        store_share=float(credit.store[0]),
        row=int(neighbours.rows[0, best]) if row_share > 0 else None,
        row_share=row_share,
    )
    return written, neighbours, credit
