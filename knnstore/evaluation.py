"""An LM joined to a store, as a model of the LM Evaluation Harness (extra ``eval``).

The harness knows the models that its registry holds, so this module has to be imported before it looks: ``knnstore
evaluate`` does, and so does a program's ``import knnstore.evaluation``.
"""

import logging
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from knnstore.api.attaching import attach
from knnstore.lm.asked import asked_penalties, words
from knnstore.lm.spec import resolve_model

NAME = "knnstore"
_LOG = logging.getLogger(__name__)


@register_model(NAME)
class KnnstoreLM(HFLM):  # type: ignore[misc]
    """The harness's ``hf`` model with a store attached: every task, prompt and window is the harness's own.

    ``pretrained``: the folder, name or hub id of a model, or one in memory. ``store``: a store or its name.
    ``lambda_``, ``temperature``, ``k``, ``nprobe``, ``exact``: as for ``knnstore.attach``. Anything else is for ``hf``.
    """

    def __init__(
        self,
        pretrained: Any,
        store: str,
        *,
        lambda_: float | None = None,
        temperature: float | None = None,
        k: int | None = None,
        nprobe: int | None = None,
        exact: bool = False,
        device: str | None = None,
        dtype: str = "auto",
        **harness: Any,
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto" and device == "cpu":
            dtype = "float32"  # as score computes there
        if isinstance(pretrained, str):
            pretrained = str(resolve_model(pretrained))
        super().__init__(pretrained, device=device, dtype=dtype, trust_remote_code=False, **harness)
        self.attachment = attach(
            self.model, store, lambda_=lambda_, temperature=temperature, k=k, nprobe=nprobe, exact=exact
        )
        if asked := asked_penalties(self.model):
            _LOG.warning("generation_config.json asks for %s: tasks that generate follow it, as hf does", words(asked))
