"""Where the command finds the model that it is told: a folder, one file, or a name on the hub.

Nothing here imports torch, unless a model on the hub has to be fetched, whose parts have to be
known then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfumato.assets import embedded_model_path
from sfumato.checkpoints.files import is_regular, shown
from sfumato.checkpoints.hub import fetch_address
from sfumato.checkpoints.hub_names import HubOptions, hub_file, hub_name
from sfumato.checkpoints.model_index import INDEX_NAME, read_model_index
from sfumato.checkpoints.original.detection import detect_family
from sfumato.checkpoints.recognise import recognise
from sfumato.checkpoints.source import open_source, shapes_of
from sfumato.errors import CheckpointError

#: Pipelines that draw without a text.
TEXTLESS = (
    "LatentDiffusionPipeline",
    "LDMPipeline",
    "LDMSuperResolutionPipeline",
    "LDMInpaintPipeline",
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to draw with.

    Attributes:
        path: a folder in diffusers' layout, or a file in the original one.
        name: what a picture's recipe calls it.
        embedded: whether it is the model in the package.
        pipeline: the class that draws with it, as a folder or weights say; None where nothing says.
    """

    path: Path
    name: str
    embedded: bool = False
    pipeline: str | None = None

    @property
    def textless(self) -> bool:
        """Whether it draws without a text."""
        return self.pipeline in TEXTLESS


def find_model(given: str | None) -> Model:
    """The model of that path, hub name or address of a file on the hub; ``None`` is the embedded.

    Raises:
        SfumatoError: there is none, or it is something else.
    """
    if given is None:
        return Model(path=embedded_model_path(), name="embedded", embedded=True)
    if (name := hub_name(given)) is not None:
        from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline

        return Model(path=Path(StableDiffusionPipeline.download(name)), name=name)
    address = hub_file(given)
    path = Path(given) if address is None else fetch_address(address, HubOptions())
    if path.is_file():
        return Model(path=path, name=path.stem, pipeline=_pipeline_of(path))
    if not is_regular(path / INDEX_NAME):
        raise CheckpointError(f"There is no model at {shown(path)} (no {INDEX_NAME}).")
    drawn_by = read_model_index(path).class_name
    return Model(path=path, name=path.resolve().name, pipeline=drawn_by)


def _pipeline_of(path: Path) -> str:
    """The pipeline that a file is made for, by its weights."""
    shapes = shapes_of(open_source(path))
    kind = recognise(shapes)
    if kind is None or kind.name != "checkpoint":
        raise CheckpointError(
            f"{shown(path)} is not a whole model but {kind.phrase if kind else 'something else'}.",
            hint="--model takes a checkpoint in one file, a folder with a model_index.json, or a "
            "name on the Hugging Face Hub.",
        )
    return detect_family(shapes, shown(path)).pipeline
