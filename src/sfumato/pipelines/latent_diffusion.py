"""Latent diffusion as in its paper: a first stage, a network, and any condition or none.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752).
Stable Diffusion is one of these models; here are the parts that all of them share.

    LatentDiffusionBase        components, and what `sfumato.pipelines.flow` asks of a pipeline
    Conditioned                the piece that tells the network about a condition
    VqvaePipeline              components under diffusers' names
    LatentDiffusionPipeline    the pipeline for a model of any kind, by its conditioner
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sfumato.conditioners.condition import Conditioner
from sfumato.diffusion.guidance import ClassifierFree, Guidance
from sfumato.diffusion.noise import Generators
from sfumato.errors import InputError, NumericalError
from sfumato.pipelines import checks
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.call import OfCall
from sfumato.pipelines.flow import Drawing, Network, Piece, check_channels, draw
from sfumato.pipelines.image_processor import VaeImageProcessor
from sfumato.pipelines.output import ImagePipelineOutput
from sfumato.pipelines.request import Request
from sfumato.pipelines.seeding import SEED_KEYWORDS
from sfumato.pipelines.start import FromNoise
from sfumato.pipelines.watch import LEGACY_KEYWORDS


class Conditioned(Piece):
    """Tells the network about a condition; in guidance, with the negative one first.

    Args:
        conditioner: see `Conditioner`.
        condition: for the conditioner.
        negative: what guidance leads away from.
        size: of the pictures in pixels, if it is asked for: a map has to be of this size.
    """

    def __init__(
        self,
        conditioner: Conditioner,
        condition: Any,
        negative: Any = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.conditioner, self.condition, self.negative = conditioner, condition, negative
        self.size = size

    def prepare(self, drawing: Drawing) -> None:
        device, dtype = drawing.device, drawing.network_dtype
        made = self.conditioner.encode(self.condition, device, dtype)
        rows = {len(value) for value in made.parts().values()}
        images = drawing.pictures // max(rows)
        made = made.spread(images)
        if drawing.guided:
            count = drawing.pictures // images
            other = self.conditioner.encode_negative(count, self.negative, device, dtype)
            made = made.after(other.spread(images))
        drawing.context = made.tokens
        drawing.tensors |= {"channels": made.channels, "class_labels": made.class_labels}
        if made.channels is not None:
            factor = drawing.pipeline.vae_scale_factor
            drawing.size = made.channels.shape[-2] * factor, made.channels.shape[-1] * factor
            if self.size not in (None, drawing.size):
                raise InputError(
                    f"The map is for pictures of the size {drawing.size} but {self.size} is asked "
                    "for.",
                    hint="Leave out `height` and `width`, or resize the map.",
                )

    def around(self, drawing: Drawing, network: Network) -> Network:
        def told(x: Tensor, timestep: Tensor, context: Any, **inputs: Any) -> Tensor:
            rows = len(x)  # fewer than there are once guidance ended: the last are the positive
            channels, labels = drawing.tensors["channels"], drawing.tensors["class_labels"]
            if channels is not None:
                x = torch.cat([x, channels[-rows:]], dim=1)
            if labels is not None:
                inputs["class_labels"] = labels[-rows:]
            return network(x, timestep, context, **inputs)

        return told


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentRequest(Request):
    """What a call without a text asks for.

    Attributes:
        batch_size: how many pictures, or how many conditions there are.
        guidance_scale: of 1, as there is nothing to lead away from unless a call says so.
    """

    batch_size: int = 1
    guidance_scale: float = 1.0

    def check(self, train_steps: int) -> None:
        checks.whole_number("batch_size", self.batch_size, 1, checks.MAX_IMAGES_PER_PROMPT)
        super().check(train_steps)

    @property
    def prompts(self) -> int:
        return int(self.batch_size)


class LatentDiffusionBase(DiffusionPipeline):
    """Base of the paper's pipelines.

    A subclass registers ``unet``, ``scheduler`` and a first stage, which it calls ``vae``, or
    offers under that name.
    """

    model_cpu_offload_seq = "conditioner->unet->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    #: Pipelines for whose models, in one file, this one does too.
    _made_for: ClassVar[tuple[str, ...]] = ()

    vae: Any
    unet: Any
    scheduler: Any

    # Settings of the running call, for callbacks; those with an underscore can be assigned.
    guidance_scale, _guidance_scale = OfCall(), OfCall()
    guidance_rescale, _guidance_rescale = OfCall(), OfCall()
    num_timesteps, _num_timesteps = OfCall(), OfCall()
    interrupt, _interrupt = OfCall(), OfCall()

    def _set_up(self, first_stage: Any, **modules: Any) -> None:
        """Take the components, the first stage among them."""
        super().__init__()
        self.register_modules(**modules)
        stages = 1 if first_stage is None else len(first_stage.config.block_out_channels)
        self.vae_scale_factor = 2 ** (stages - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network is asked about the negative condition as well."""
        return self.guidance_scale > 1

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load from a checkpoint of the paper in one file, ``.ckpt`` or ``.safetensors``.

        The kind of model and all sizes are found out from the weights, configurations of the
        published models are part of this package. For a model of another noise schedule, or with
        another number of attention heads, give its YAML file as ``original_config``.

        Args:
            pretrained_model_link_or_path: the file, or its address on the Hugging Face Hub.
            kwargs: as in `StableDiffusionPipeline.from_single_file`.

        Raises:
            CheckpointError: (an ``OSError``) the file is damaged, unsafe, or of another kind.
            ConfigError: (a ``ValueError``) a configuration is wrong.
            InputError: (a ``ValueError``) arguments contradict each other, or a component is
                missing.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
        """
        from sfumato.pipelines import single_file

        return single_file.load_single_file(cls, pretrained_model_link_or_path, **kwargs)

    def save_single_file(
        self,
        path: str | PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Save all networks as one checkpoint in the original layout.

        Args:
            path, dtype, metadata: as in `StableDiffusionPipeline.save_single_file`.

        Raises:
            InputError: (a ``ValueError``) the name ends otherwise.
            CheckpointError: (an ``OSError``) a network is missing.
        """
        from sfumato.pipelines import single_file

        told = getattr(self, "conditioner", None) is not None
        names = ("unet", "vae", "conditioner") if told else ("unet", "vae")
        single_file.save_single_file(self, path, dtype=dtype, metadata=metadata, names=names)

    # What the flow asks of a pipeline

    @classmethod
    def _keywords(cls) -> set[str]:
        named = set(inspect.signature(cls.__call__).parameters) - {"self", "kwargs"}
        own = {"guidance", "guidance_rescale", "tiling", *SEED_KEYWORDS}
        return named | own | set(LEGACY_KEYWORDS)

    def _guidance(self) -> Guidance | None:
        if not self.do_classifier_free_guidance:
            return None
        return ClassifierFree(self.guidance_scale, self.guidance_rescale)

    def _embed(self, request: Request, device: torch.device) -> dict[str, Any]:
        return {"network_dtype": self.unet.dtype}

    def _conditions(self, *_: Any) -> dict[str, Any]:
        return {}

    def _predict(
        self, x: Tensor, timestep: Tensor, context: Tensor | None, **inputs: Any
    ) -> Tensor:
        """Ask the network, which may be of a kind that knows no tokens."""
        if context is not None:
            inputs["encoder_hidden_states"] = context
        return self.unet(x, timestep, return_dict=False, **inputs)[0]

    def _to_output(
        self,
        latents: Tensor,
        output_type: str | None,
        generator: Generators,
        dtype: torch.dtype,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> ImagePipelineOutput:
        if output_type == "latent":
            return ImagePipelineOutput(latents)
        if decode is None:
            latents = latents / self.vae.config.scaling_factor
        image = decode_first_stage(self.vae, latents) if decode is None else decode(latents)
        images = self.image_processor.postprocess(image, output_type=str(output_type))
        return ImagePipelineOutput(images)

    def _size(self, height: Any, width: Any) -> tuple[int, int]:
        """The size asked for in pixels; what is left out is as the network was trained.

        Networks are convolutional: they draw at sizes they were not trained for, too.
        """
        factor = self.vae_scale_factor
        if height is None or width is None:
            size = self._part("unet", "drawing").config.sample_size
            if size is None:
                raise InputError("The UNet has no default size.", hint="Pass `height` and `width`.")
            rows, columns = (size, size) if isinstance(size, int) else size
            height = rows * factor if height is None else height
            width = columns * factor if width is None else width
        for name, side in (("height", height), ("width", width)):
            if checks.whole_number(name, side, 1, checks.MAX_SIDE) % factor:
                raise InputError(
                    f"`{name}` has to be divisible by {factor} but is {side}.",
                    hint="The first stage makes one latent of so many pixels.",
                )
        return int(height), int(width)


class VqvaePipeline(LatentDiffusionBase):
    """Base of pipelines that call their first stage ``vqvae``, as diffusers' do."""

    model_cpu_offload_seq = "unet->vqvae"

    vqvae: Any

    def __init__(self, vqvae: Any, unet: Any, scheduler: Any) -> None:
        self._set_up(vqvae, vqvae=vqvae, unet=unet, scheduler=scheduler)

    @property
    def vae(self) -> Any:
        """The first stage, under the name that other pipelines have for it."""
        return self.vqvae


class LatentDiffusionPipeline(LatentDiffusionBase):
    """Draws with a latent diffusion model of any kind.

    Args:
        vae: the first stage, `AutoencoderKL` or `VQModel`.
        unet: `UNet2DModel`, or `UNet2DConditionModel` for conditions that are tokens.
        scheduler: which noise levels to pass through, and how.
        conditioner: see `Conditioner`; None for a model that draws without any condition.
    """

    _optional_components: ClassVar[list[str]] = ["conditioner"]
    _made_for: ClassVar[tuple[str, ...]] = ("LDMPipeline", "LatentDiffusionPipeline")

    conditioner: Any

    def __init__(self, vae: Any, unet: Any, scheduler: Any, conditioner: Any = None) -> None:
        self._set_up(vae, vae=vae, unet=unet, scheduler=scheduler, conditioner=conditioner)

    @torch.no_grad()
    def __call__(
        self,
        condition: Any = None,
        batch_size: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 1.0,
        negative_condition: Any = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw. What is not listed is as in `StableDiffusionPipeline.__call__`.

        Args:
            condition: what to draw, in a form that the conditioner takes; one, or a list.
            batch_size: how many pictures, of each condition if there are any.
            height, width: in pixels. By default as the network was trained, or as large as a
                condition that is a map; larger pictures are drawn by convolution.
            guidance_scale: above 1, go further towards the condition than the network says.
            negative_condition: what to go away from; by default no condition.
            latents: the noise to start from, ``(pictures, channels, h, w)``.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range or contradicts another.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
            NumericalError: NaN or infinity appeared.
        """
        arguments = locals()
        if self.conditioner is None:
            if condition is not None or negative_condition is not None:
                raise InputError("This model takes no condition.")
            arguments["guidance_scale"] = 1.0
            request = LatentRequest.read(self, arguments)
            check_channels(self.unet, {"latents": self._latent_channels})
            return draw(self, request, self._noise(height, width, latents, sized=True))
        arguments |= {"num_images_per_prompt": batch_size}
        arguments["batch_size"] = self.conditioner.count(condition)
        request = LatentRequest.read(self, arguments)
        mapped = self._latent_channels < self.unet.config.in_channels
        sized = not mapped or height is not None or width is not None
        noise = self._noise(height, width, latents, sized)
        told = Conditioned(self.conditioner, condition, negative_condition, noise.size)
        return draw(self, request, told, noise)

    @property
    def _latent_channels(self) -> int:
        return self.unet.config.out_channels

    def _noise(
        self, height: int | None, width: int | None, latents: Tensor | None, sized: bool
    ) -> FromNoise:
        size = self._size(height, width) if sized else (None, None)
        return FromNoise(*size, latents, self._latent_channels)


def decode_first_stage(first_stage: Any, latents: Tensor) -> Tensor:
    """Latents to images ``(batch, 3, height, width)`` around -1..1.

    Raises:
        NumericalError: when the first stage makes NaN or infinity of finite latents.
    """
    image = first_stage.decode(latents.to(first_stage.dtype)).sample
    if not torch.isfinite(image).all():
        raise NumericalError(
            "NaN or infinity in the picture: the first stage overflowed.",
            hint="In float16 some do: load it in float32 or bfloat16.",
        )
    return image
