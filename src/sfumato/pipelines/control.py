"""Drawing under the control of a ControlNet: the piece that adds its features to the UNet's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from sfumato.errors import InputError
from sfumato.models.controlnet import MultiControlNetModel
from sfumato.pipelines import checks
from sfumato.pipelines.flow import Drawing, Network, Piece, fit_rows
from sfumato.pipelines.image_processor import VaeImageProcessor
from sfumato.text.conditioning import InputTypeError


@dataclass(frozen=True)
class Control:
    """When and how strongly each ControlNet acts.

    Attributes:
        nets: the networks.
        scales: strength of each.
        starts, ends: the share of the timesteps at which each begins and ends to act, 0..1.
        guess: guess mode: weaker at high resolutions, and not felt by the negative half.
        several: whether the pipeline has a `MultiControlNetModel`.
    """

    nets: list[Any]
    scales: list[float]
    starts: list[float]
    ends: list[float]
    guess: bool
    several: bool

    def scales_at(self, row: int, rows: int) -> list[float]:
        """The strengths at timestep number ``row`` of ``rows``."""
        return [
            scale * (not (row / rows < start or (row + 1) / rows > end))
            for scale, start, end in zip(self.scales, self.starts, self.ends, strict=True)
        ]


def nets_of(pipeline: Any) -> list[Any]:
    """The ControlNets of a pipeline."""
    net = pipeline._part("controlnet", "drawing under control")
    net = getattr(net, "_orig_mod", net)
    return list(net.nets) if is_several(net) else [net]


def is_several(net: Any) -> bool:
    """Whether a component is a `MultiControlNetModel`, of this library or of diffusers."""
    return hasattr(getattr(net, "_orig_mod", net), "nets")


def as_one(controlnet: Any) -> Any:
    """A list of ControlNets as one component."""
    return MultiControlNetModel(controlnet) if isinstance(controlnet, list | tuple) else controlnet


def read_control(pipeline: Any, scale: Any, start: Any, end: Any, guess_mode: Any) -> Control:
    """The arguments of a call about control, checked and listed per network."""
    nets, several = nets_of(pipeline), is_several(pipeline.controlnet)
    if not several and not isinstance(scale, float):
        raise InputTypeError(
            "For single controlnet: `controlnet_conditioning_scale` must be type `float`."
        )
    scales = list(scale) if isinstance(scale, list) else [scale] * len(nets)
    if any(isinstance(item, list) for item in scales):
        raise InputError(
            "A single batch of varying conditioning scale settings (e.g. [[1.0, 0.5], [0.2, 0.8]])"
            " is not supported at the moment. The conditioning scale must be fixed across the"
            " batch."
        )
    if len(scales) != len(nets):
        raise InputError(
            "For multiple controlnets: When `controlnet_conditioning_scale` is specified as"
            " `list`, it must have the same length as the number of controlnets"
        )
    length = next((len(v) for v in (end, start) if isinstance(v, list | tuple)), len(nets))
    starts, ends = (
        list(value) if isinstance(value, list | tuple) else [value] * length
        for value in (start, end)
    )
    _check_span(starts, ends, len(nets))
    numbers = [checks.finite_number("controlnet_conditioning_scale", item) for item in scales]
    guess = bool(guess_mode) or bool(nets[0].config.global_pool_conditions)
    return Control(nets, numbers, starts, ends, guess, several)


def _check_span(starts: Sequence[Any], ends: Sequence[Any], nets: int) -> None:
    if len(starts) != len(ends):
        raise InputError(
            f"`control_guidance_start` has {len(starts)} elements, but `control_guidance_end` has"
            f" {len(ends)} elements. Make sure to provide the same number of elements to each list."
        )
    if len(starts) != nets:
        raise InputError(
            f"`control_guidance_start`: {starts} has {len(starts)} elements but there are {nets}"
            f" controlnets available. Make sure to provide {nets}."
        )
    for start, end in zip(starts, ends, strict=True):
        checks.finite_number("control_guidance_start", start)
        checks.finite_number("control_guidance_end", end)
        if start >= end:
            raise InputError(
                f"control guidance start: {start} cannot be larger or equal to control guidance"
                f" end: {end}."
            )
        if start < 0.0:
            raise InputError(f"control guidance start: {start} can't be smaller than 0.")
        if end > 1.0:
            raise InputError(f"control guidance end: {end} can't be larger than 1.0.")


def check_control_images(pipeline: Any, image: Any, prompts: int) -> None:
    """A picture or a batch of them for one ControlNet, a list of such for several."""
    nets = nets_of(pipeline)
    if not is_several(pipeline.controlnet):
        return _check_image(image, prompts)
    if not isinstance(image, list):
        raise InputTypeError("For multiple controlnets: `image` must be type `list`")
    if image and all(isinstance(item, list) for item in image):
        image = [list(own) for own in zip(*image, strict=False)]
        if len(image) != len(nets):
            raise InputError(
                "For multiple controlnets: if you pass`image` as a list of list, each sublist must"
                " have the same length as the number of controlnets, but the sublists in `image`"
                f" got {len(image)} images and {len(nets)} ControlNets."
            )
    if len(image) != len(nets):
        raise InputError(
            "For multiple controlnets: `image` must have the same length as the number of"
            f" controlnets, but got {len(image)} images and {len(nets)} ControlNets."
        )
    for own in image:
        _check_image(own, prompts)


def _check_image(image: Any, prompts: int) -> None:
    first = image[0] if isinstance(image, list) and image else image
    if not isinstance(first, Image | Tensor | np.ndarray):
        raise InputTypeError(
            "image must be passed and be one of PIL image, numpy array, torch tensor, list of PIL"
            " images, list of numpy arrays or list of torch tensors, but is"
            f" {type(image)}"
        )
    count = 1 if isinstance(image, Image) else len(image)
    if count not in (1, prompts):
        raise InputError(
            "If image batch size is not 1, image batch size must be same as prompt batch size."
            f" image batch size: {count}, prompt batch size: {prompts}"
        )


class Controlled(Piece):
    """Features of ControlNets on top of the UNet's own.

    Args:
        control: the networks, and when they act.
        image: control pictures: for several networks a list with those of each.
        name: under which callbacks know them.
        height, width: of the pictures to draw; None takes the control picture's own.
        region: part of the control pictures to use, for PIL pictures.

    The drawing takes the size of the control pictures, unless another piece says otherwise.
    """

    needs_steps = "ControlNets"

    def __init__(
        self,
        control: Control,
        image: Any,
        name: str,
        height: int | None = None,
        width: int | None = None,
        region: tuple[int, int, int, int] | None = None,
    ) -> None:
        self.control, self.image, self.name = control, image, name
        self.height, self.width, self.region = height, width, region

    def prepare(self, drawing: Drawing) -> None:
        images = self.image if self.control.several else [self.image]
        if images and all(isinstance(item, list) for item in images) and self.control.several:
            images = [list(own) for own in zip(*images, strict=False)]
        request = drawing.request
        tensors = [
            control_tensor(
                drawing.pipeline.control_image_processor,
                image,
                self.width,
                self.height,
                drawing.pictures,
                int(request.num_images_per_prompt),
                drawing.device,
                net.dtype,
                drawing.guided and not self.control.guess,
                self.region,
            )
            for image, net in zip(images, self.control.nets, strict=True)
        ]
        tensor: Any = tensors if self.control.several else tensors[0]
        drawing.tensors[self.name] = tensor
        drawing.size = (tensors[0].shape[-2], tensors[0].shape[-1])

    def around(self, drawing: Drawing, network: Network) -> Network:
        def controlled(x: Tensor, timestep: Tensor, context: Any, **inputs: Any) -> Tensor:
            residuals = self._residuals(drawing, x, timestep, context)
            if residuals:
                inputs["mid_block_additional_residual"] = residuals.pop()
                inputs["down_block_additional_residuals"] = residuals
            return network(x, timestep, context, **inputs)

        return controlled

    def _residuals(
        self, drawing: Drawing, x: Tensor, timestep: Tensor, context: Any
    ) -> list[Tensor]:
        """What the networks add to each skip and, at the end, to the middle; empty for nothing."""
        control, pictures = self.control, drawing.pictures
        # Guess mode asks about the positive half alone, which comes after the negative one.
        skipped = pictures if control.guess and len(x) > pictures else 0
        given: Any = drawing.tensors[self.name]
        scales = control.scales_at(drawing.row, len(drawing.timesteps))
        total: list[Tensor] = []
        for image, scale, net in zip(
            given if control.several else [given], scales, control.nets, strict=True
        ):
            if scale == 0:
                continue
            down, mid = net(
                x[skipped:],
                timestep,
                encoder_hidden_states=context[skipped:],
                controlnet_cond=fit_rows(image, len(x) - skipped),
                conditioning_scale=scale,
                guess_mode=control.guess,
                return_dict=False,
            )
            own = [*down, mid]
            total = [a + b for a, b in zip(total, own, strict=True)] if total else own
        if skipped:
            total = [torch.cat([torch.zeros_like(part[:skipped]), part]) for part in total]
        return total


def control_tensor(
    processor: VaeImageProcessor,
    image: Any,
    width: int | None,
    height: int | None,
    count: int,
    images_per_prompt: int,
    device: torch.device | str,
    dtype: torch.dtype,
    twice: bool,
    region: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Control pictures ``(n, 3, height, width)`` in 0..1, one per drawing.

    Args:
        processor: of the pipeline.
        image: one picture for all, or one per prompt.
        width, height: of the pictures to draw.
        count: of the drawings.
        images_per_prompt: how often each is repeated next to itself.
        device, dtype: of the result.
        twice: once more, for guidance.
        region: the part to use.
    """
    tensor = processor.preprocess(
        image,
        height=height,
        width=width,
        crops_coords=region,
        resize_mode="default" if region is None else "fill",
    ).float()
    tensor = tensor.repeat_interleave(count if len(tensor) == 1 else images_per_prompt, dim=0)
    tensor = tensor.to(device, dtype)
    return torch.cat([tensor, tensor]) if twice else tensor
