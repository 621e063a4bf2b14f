"""Text that an LM and a store write together, token by token, with what each token owes to whom."""

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
    """A token that was written. ``text`` is what it adds: empty where it only begins a character.

    ``p``, ``p_lm`` and ``p_store``: its probability by mixture, LM and store, before any sampling; ``store_share``: the
    part of ``p`` that comes from the store's neighbours, λ p_store / p with constants. ``row``: the neighbour with this
    token that gave most of it, ``row_share`` its part of ``p``; None where no neighbour has the token.
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
    """A text in the making: iterate over its tokens; then ``text`` and ``attribution`` tell of those written so far.

    An encoder-decoder model writes what the prompt becomes, such as its translation. The LM is joined to the store in
    the thread that writes, and there alone. To leave off early, close the iterator.

    ``sampling``: None takes the most probable token each time, whatever the model's generation_config.json asks for.
    ``generation_config``: apply the penalties and bans of that file, and its sampling where ``sampling`` is None.
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
        """Write; a second iteration writes once more from the prompt."""
        self.tokens.clear()
        self._ledger = Ledger(self._joined.passages)
        for token, neighbours, credit in in_thread(self._write):
            self._ledger.add(neighbours, credit)
            self.tokens.append(token)
            yield token

    @property
    def setting(self) -> Setting:
        """The constants of the mixture."""
        return self._joined.setting

    @property
    def gated(self) -> bool:
        """Whether a gate weighs each token instead of the constants."""
        return self._joined.mixed_by.mixture.gate is not None

    @property
    def source(self) -> str:
        """Where the mixture comes from, in words."""
        return self._joined.mixed_by.source

    @property
    def asked(self) -> dict[str, Any]:
        """What the model's generation_config.json asks for that changes a text: sampling, penalties, bans."""
        model = self._joined.model.loaded.model
        return asked_sampling(model) | asked_penalties(model)

    @property
    def not_applicable(self) -> dict[str, Any]:
        """What else that file asks for, and a text that is written token by token can't follow, such as beams."""
        return asked_otherwise(self._joined.model.loaded.model)

    @property
    def text(self) -> str:
        """What was written after the prompt."""
        return "".join(token.text for token in self.tokens)

    @property
    def attribution(self) -> Attribution:
        """Who earned the probability of the tokens written."""
        return self._ledger.attribution()

    def cited(self, token: WrittenToken) -> Passage | None:
        """The passage that gave most of a token's probability; None if none has the token."""
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
