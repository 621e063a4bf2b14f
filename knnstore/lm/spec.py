"""Specify an LM: resolve the user's name to a folder, and describe the LM. Imports no torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from knnstore.datastore.manifest import ModelIdentity, task_of
from knnstore.errors import ModelError
from knnstore.lm.folders import require_lm, require_lm_file

SHIPPED_MODELS = Path(__file__).parent.parent / "models"
DEFAULT_MODEL = "wiki-lm"


@dataclass(frozen=True, slots=True)
class LmSpec:
    """An LM and how to run it.

    ``layer``: the key layer, which also determines the kind, causal or encoder-decoder. ``dtype`` ``auto`` is float32
    on a CPU and bfloat16 on a GPU (float16 on one without it). ``device`` ``auto`` is a GPU if there is one.
    ``identity``: of the LM, for workers on a segment that records it under another identity (see ``recognition``).
    """

    model: str
    layer: str = "ffn-input"
    dtype: str = "auto"
    device: str = "auto"
    identity: ModelIdentity | None = None

    @property
    def task(self) -> str:
        """Return ``causal`` or ``seq2seq``."""
        return task_of(self.layer)


@dataclass(frozen=True, slots=True)
class LmFacts:
    """Facts about an LM that a job needs before it runs it; ``layer`` and ``path`` are the actual place of the keys.

    ``bfloat16_speed``: speed in bfloat16 relative to float32, if ``dtype`` was chosen by it.
    """

    identity: ModelIdentity
    layer: str
    path: str
    dimension: int
    parameters: int
    default_context: int
    longest_context: int
    dtype: str
    device: str
    bfloat16_speed: float | None = None


@dataclass(frozen=True, slots=True)
class Recognition:
    """Whether the LM with this ``identity`` made some keys: ``differing`` lists the differences, empty for the same LM.

    ``keys``: describes the distance of its keys from the stored ones, if that had to decide; else empty.
    """

    identity: ModelIdentity
    differing: tuple[str, ...] = ()
    keys: str = ""


def default_model() -> str:
    """Return ``$KNNSTORE_MODEL``, else the name of the LM shipped with the package."""
    return os.environ.get("KNNSTORE_MODEL") or DEFAULT_MODEL


def resolve_model(model: str) -> Path:
    """Return the local folder of a model given as a folder, a name in ``$KNNSTORE_MODELS``, a shipped LM or a hub id.

    Raises ModelError with the places searched, or with what was found instead of an LM.
    """
    places = [Path(model)]
    if os.environ.get("KNNSTORE_MODELS"):
        places.insert(0, Path(os.environ["KNNSTORE_MODELS"]) / model)
    places.append(SHIPPED_MODELS / model)
    try:
        folders = [place for place in places if model and place.is_dir()]
        folder = next((place for place in folders if (place / "config.json").is_file()), None) or next(
            iter(folders), None
        )
        is_file = Path(model).is_file()
    except (OSError, ValueError):  # too long, or with a null byte
        raise ModelError(f"no model {model[:100]!r}: a folder can't have this name; give the folder of an LM") from None
    if folder is None and is_file:
        require_lm_file(Path(model))
    folder = folder or _download(model, places)
    require_lm(folder)
    return folder


def _download(model: str, places: list[Path]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only a hub id needs it
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    looked = ", ".join(str(place) for place in places)
    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
        return Path(snapshot_download(model, allow_patterns=wanted))
    except HFValidationError:
        raise ModelError(f"no model {model!r}: looked in {looked}; give the folder or the name of a model") from None
    except Exception as error:  # the hub client raises many unrelated types when the hub can't be reached
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelError(
            f"no model {model!r}: looked in {looked} and on the hub ({reason}); check the name, or download it on a "
            f"machine with a network with 'hf download {model} --local-dir FOLDER' and give that folder"
        ) from None


def weight_bytes(model: str) -> int:
    """Return the bytes of the weight files of a model given by name, hub id or folder."""
    return sum(path.stat().st_size for path in resolve_model(model).glob("*.safetensors"))
