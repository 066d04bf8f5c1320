"""Choosing a pipeline by task: the class follows from what a folder or another pipeline has."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from sfumato.checkpoints.model_index import INDEX_NAME, read_model_index
from sfumato.errors import InputError
from sfumato.pipelines import single_file
from sfumato.pipelines.controlnet import StableDiffusionControlNetPipeline
from sfumato.pipelines.controlnet_img2img import StableDiffusionControlNetImg2ImgPipeline
from sfumato.pipelines.controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
from sfumato.pipelines.img2img import StableDiffusionImg2ImgPipeline
from sfumato.pipelines.inpaint import StableDiffusionInpaintPipeline
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline


class AutoPipeline:
    """Base of the classes that make a pipeline for a task; they have no instances themselves.

    Raises:
        InputError: always; use `from_pretrained` or `from_pipe`.
    """

    config_name: ClassVar[str] = "model_index.json"
    #: For the task: without and with ControlNets.
    plain: ClassVar[type[Any]]
    controlled: ClassVar[type[Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = type(self).__name__
        raise InputError(
            f"{name} is designed to be instantiated using the"
            f" `{name}.from_pretrained(pretrained_model_name_or_path)` or"
            f" `{name}.from_pipe(pipeline)` methods."
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: str | PathLike[str], **kwargs: Any) -> Any:
        """Load a pipeline for the task; see `DiffusionPipeline.from_pretrained`.

        With ``controlnet`` among the keywords, or in the folder, it is one for ControlNets.

        Raises:
            InputError: the folder is for another kind of pipeline, such as the x4 upscaler.
        """
        found = None
        if (Path(pretrained_model_or_path) / INDEX_NAME).is_file():
            found = read_model_index(pretrained_model_or_path).class_name
        chosen = cls._choose(found or "StableDiffusionPipeline", kwargs)
        return chosen.from_pretrained(pretrained_model_or_path, **_without_nothing(kwargs))

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | PathLike[str], **kwargs: Any
    ) -> Any:
        """Load a pipeline for the task from one file; see `StableDiffusionPipeline`'s method.

        With ``controlnet`` among the keywords it is one for ControlNets.

        Raises:
            InputError: the file is for another kind of pipeline, such as the x4 upscaler.
        """
        name = single_file.pipeline_of(pretrained_model_link_or_path, **kwargs)
        chosen = cls._choose(name, kwargs)
        return chosen.from_single_file(pretrained_model_link_or_path, **_without_nothing(kwargs))

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """A pipeline for the task with another's components; see `DiffusionPipeline.from_pipe`.

        ``controlnet=None`` leaves out the ControlNets that the other has.

        Raises:
            InputError: the other is of another kind, such as the x4 upscaler.
        """
        chosen = cls._choose(type(pipeline).__name__, kwargs)
        return chosen.from_pipe(pipeline, **_without_nothing(kwargs))

    @classmethod
    def _choose(cls, name: str, kwargs: dict[str, Any]) -> type[Any]:
        """The class for the task that goes with a class of this name, and with the keywords."""
        known = {c.__name__ for task in AutoPipeline.__subclasses__() for c in task._classes()}
        if name not in known:
            raise InputError(
                f"AutoPipeline can't find a pipeline linked to {name} for {cls.__name__}."
            )
        has_control = "ControlNet" in name
        if "controlnet" in kwargs:
            has_control = kwargs["controlnet"] is not None
        return cls.controlled if has_control else cls.plain

    @classmethod
    def _classes(cls) -> tuple[type[Any], type[Any]]:
        return cls.plain, cls.controlled


def _without_nothing(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords, without a ``controlnet`` that is None: the class has said it."""
    return {k: v for k, v in kwargs.items() if k != "controlnet" or v is not None}


class AutoPipelineForText2Image(AutoPipeline):
    """Makes a pipeline that draws from text."""

    plain = StableDiffusionPipeline
    controlled = StableDiffusionControlNetPipeline


class AutoPipelineForImage2Image(AutoPipeline):
    """Makes a pipeline that changes pictures."""

    plain = StableDiffusionImg2ImgPipeline
    controlled = StableDiffusionControlNetImg2ImgPipeline


class AutoPipelineForInpainting(AutoPipeline):
    """Makes a pipeline that draws into pictures."""

    plain = StableDiffusionInpaintPipeline
    controlled = StableDiffusionControlNetInpaintPipeline
