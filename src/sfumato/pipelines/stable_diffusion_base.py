"""What all pipelines of the Stable Diffusion family share: components, and the stations of a call.

Under diffusers' names, a station is one line that calls a function of its own elsewhere. Each
pipeline is a file with a ``__call__`` on top of this.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from sfumato.adapters.pipeline_methods import StableDiffusionLoraLoaderMixin
from sfumato.adapters.state import hold
from sfumato.diffusion.foreign import accepted_options
from sfumato.diffusion.guidance import ClassifierFree, Guidance
from sfumato.diffusion.noise import Generators
from sfumato.errors import InputError
from sfumato.pipelines import checks, ip_adapter, repairs, stages
from sfumato.pipelines.base import DiffusionPipeline
from sfumato.pipelines.call import CallState, OfCall
from sfumato.pipelines.image_processor import VaeImageProcessor
from sfumato.pipelines.ip_adapter_methods import IPAdapterMixin
from sfumato.pipelines.output import StableDiffusionPipelineOutput
from sfumato.pipelines.request import OWN_KEYWORDS, Request
from sfumato.pipelines.textual_inversion import TextualInversionLoaderMixin
from sfumato.pipelines.watch import LEGACY_KEYWORDS
from sfumato.runtime import engines
from sfumato.text.conditioning import encode_prompt

logger = logging.getLogger(__name__)


class StableDiffusionBase(
    DiffusionPipeline,
    TextualInversionLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    IPAdapterMixin,
):
    """Base of the pipelines that draw with a text encoder, a UNet and an autoencoder.

    Every component may be this package's, or an object of diffusers or transformers with the same
    methods. Every component may be None; a call then says what it misses.

    Args:
        vae: autoencoder between pictures and latents.
        text_encoder: CLIP text encoder.
        tokenizer: CLIP tokenizer.
        unet: predicts the noise in latents.
        scheduler: which noise levels to pass through, and how.
        safety_checker: ``(images=..., clip_input=...) -> (images, flags)``, or None.
        feature_extractor: makes the safety checker's input.
        image_encoder: CLIP vision model, for IP-Adapters.
        requires_safety_checker: log a warning when there is no safety checker.

    Raises:
        InputError: when there is a safety checker but no feature extractor.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = [
        "safety_checker",
        "feature_extractor",
        "image_encoder",
    ]
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["safety_checker"]
    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
    ]

    #: Settings of schedulers that early checkpoints have wrong.
    _outdated_settings: ClassVar[dict[str, Any]] = {"steps_offset": 1, "clip_sample": False}

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    safety_checker: Any
    feature_extractor: Any
    image_encoder: Any

    # Settings of the running call, for callbacks; those with an underscore can be assigned.
    guidance_scale, _guidance_scale = OfCall(), OfCall()
    guidance_rescale, _guidance_rescale = OfCall(), OfCall()
    clip_skip, _clip_skip = OfCall(), OfCall()
    cross_attention_kwargs, _cross_attention_kwargs = OfCall(), OfCall()
    num_timesteps, _num_timesteps = OfCall(), OfCall()
    interrupt, _interrupt = OfCall(), OfCall()

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        self._set_up(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self._settle_safety(requires_safety_checker)

    def _set_up(self, **modules: Any) -> None:
        """Take the components, of which there are at least ``vae``, ``unet`` and ``scheduler``."""
        super().__init__()
        repairs.repair_scheduler(modules["scheduler"], self._outdated_settings)
        repairs.repair_sample_size(modules["unet"])
        self.register_modules(**modules)
        vae = modules["vae"]
        self.vae_scale_factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        channels = 4 if vae is None else vae.config.latent_channels
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor,
            # Tensors with so many channels are latents; those with 3 have to stay pictures.
            vae_latent_channels=4 if channels == 3 else channels,
        )

    def _settle_safety(self, required: bool) -> None:
        """Note whether a safety checker belongs to the pipeline; complain when it cannot work."""
        if self.safety_checker is None and required:
            logger.warning(
                "%s has no safety checker, so nothing filters what it draws. Licences of published"
                " weights can forbid to show such results to the public. To say that this is meant,"
                " pass `requires_safety_checker=False`.",
                type(self).__name__,
            )
        if self.safety_checker is not None and self.feature_extractor is None:
            raise InputError(
                f"Make sure to define a feature extractor when loading {type(self).__name__} if"
                " you want to use the safety checker.",
                hint="If you do not want to use it, you can pass `safety_checker=None` instead.",
            )
        self.register_to_config(requires_safety_checker=required)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the UNet is asked with the negative prompt as well.

        Networks with ``time_cond_proj_dim`` were distilled to do without. With samplers of CFG++
        any scale above 0 is one of guidance.
        """
        config = getattr(self.unet, "config", None)
        distilled = getattr(config, "time_cond_proj_dim", None) is not None
        least = 0 if getattr(self.scheduler, "wants_negative", False) else 1
        return self.guidance_scale > least and not distilled

    # One file

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load from a checkpoint in one file (``.safetensors``, ``.ckpt``, ``.gguf``); no network.

        Stable Diffusion 1.x and 2.x, their inpainting models, InstructPix2Pix and the x4 upscaler
        are told apart by their weights, configurations and vocabulary are part of this package.

        Args:
            pretrained_model_link_or_path: the file, or its address on the Hugging Face Hub
                (``https://huggingface.co/<owner>/<name>/blob/main/<file>``).
            kwargs: ``torch_dtype`` or ``dtype`` (a `torch.dtype`, ``"auto"`` for the file's own, or
                a dict of them by component name with ``default``); ``prediction_type``
                (``epsilon`` or ``v_prediction``, found out by default); ``extract_ema`` (use the
                averaged weights if the file has both); ``config`` (a folder in diffusers' layout
                whose configurations to use) or ``original_config`` (the YAML file that came with
                the checkpoint); ``disable_mmap``; ``check_finite``; ``quantization`` (as of
                `from_pretrained`); and any component or setting by name.

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
        """Save the networks as one checkpoint in the original layout, as A1111 and ComfyUI read.

        Args:
            path: the file, ending in ``.safetensors``.
            dtype: convert to this type, such as `torch.float16`.
            metadata: text to put beside the tensors.

        Raises:
            InputError: (a ``ValueError``) the name ends otherwise.
            CheckpointError: (an ``OSError``) a network is missing, or none of Stable Diffusion's.
        """
        from sfumato.pipelines import single_file

        single_file.save_single_file(self, path, dtype=dtype, metadata=metadata)

    # Parts of a call

    def use_engine(
        self, engine: str, *, networks: Sequence[str] | None = None, **options: Any
    ) -> None:
        """Let an engine compute the UNet and the autoencoder, or torch again.

        Args:
            engine: "openvino" (extra ``openvino``), "compile" (torch's compiler, which needs a C++
                compiler), or "torch". What an engine cannot compute is left to torch, with a
                warning; see `sfumato.runtime.engines`.
            networks: those that the engine shall compute, of "unet" and "vae"; None for both.
            options: for OpenVINO ``dtype`` ("float32" or "bfloat16"; that of the networks, with
                bfloat16 for float16), ``threads``, and ``shapes`` (how many sizes of pictures to
                keep compiled, each with weights of its own; 2). For "compile" ``folder`` (where
                compiled code is kept) and ``kernels`` (False: not the package's own ones).

        Raises:
            InputError: there is no such engine, network or option.
            MissingDependencyError: the engine's package, or the C++ compiler, is not installed.
        """
        engines.use_engine(self.components, engine, options, networks)

    @contextmanager
    def _running(self, state: CallState) -> Iterator[None]:
        """As in the base class; besides, adapters that others switch wait for the next call."""
        with hold(self.unet, self.text_encoder), super()._running(state):
            yield

    @classmethod
    def _keywords(cls) -> set[str]:
        """All keywords of a call, the deprecated ones and those of our own included."""
        named = set(inspect.signature(cls.__call__).parameters) - {"self", "kwargs"}
        return named | set(LEGACY_KEYWORDS) | set(OWN_KEYWORDS)

    def _guidance(self) -> Guidance | None:
        if not self.do_classifier_free_guidance:
            return None
        return ClassifierFree(self.guidance_scale, self.guidance_rescale)

    def _embed(self, request: Request, device: torch.device) -> dict[str, Any]:
        """The fields of a `Drawing` that prompts taken as they are make."""
        positive, negative = self.encode_prompt(
            request.prompt,
            device,
            int(request.num_images_per_prompt),
            self.do_classifier_free_guidance,
            request.negative_prompt,
            prompt_embeds=request.prompt_embeds,
            negative_prompt_embeds=request.negative_prompt_embeds,
            lora_scale=(request.cross_attention_kwargs or {}).get("scale"),
            clip_skip=request.clip_skip,
        )
        context = positive
        if self.do_classifier_free_guidance and negative is not None:
            context = self._join(positive, negative)
        return {
            "network_dtype": positive.dtype,
            "context": context,
            "tensors": {"negative_prompt_embeds": negative},
        }

    def _predict(
        self, x: Tensor, timestep: Tensor, context: Tensor | None, **inputs: Any
    ) -> Tensor:
        """Ask the UNet about latents ``x`` beside text ``context``."""
        return self.unet(
            x,
            timestep,
            encoder_hidden_states=context,
            cross_attention_kwargs=self.cross_attention_kwargs,
            return_dict=False,
            **inputs,
        )[0]

    def _join(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The context of a guided call, as `_guidance` wants it."""
        return torch.cat([negative, positive])

    def _conditions(
        self,
        image: Any,
        image_embeds: list[Tensor] | None,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> dict[str, Any]:
        """What the UNet gets besides latents, timestep and text; the same in every step."""
        conditions: dict[str, Any] = {}
        if image is not None or image_embeds is not None:
            embeds = self.prepare_ip_adapter_image_embeds(
                image, image_embeds, device, batch_size, self.do_classifier_free_guidance
            )
            parts = ip_adapter.parts_of(self, self.do_classifier_free_guidance)
            ip_adapter.require_batch(embeds, batch_size * len(parts))
            conditions["added_cond_kwargs"] = {"image_embeds": embeds}
        else:
            ip_adapter.require_none(self.unet)
        width = getattr(self.unet.config, "time_cond_proj_dim", None)
        if width is not None:
            w = torch.tensor(self.guidance_scale - 1).repeat(batch_size)
            waves = self.get_guidance_scale_embedding(w, embedding_dim=width)
            conditions["timestep_cond"] = waves.to(device=device, dtype=dtype)
        return conditions

    def _to_output(
        self,
        latents: Tensor,
        output_type: str | None,
        generator: Generators,
        dtype: torch.dtype,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> Any:
        if output_type == "latent":
            return StableDiffusionPipelineOutput(latents, None)
        image = decode(latents) if decode else stages.decode(self.vae, latents, generator)
        image, flags = self.run_safety_checker(image, self._execution_device, dtype)
        images = self.image_processor.postprocess(
            image,
            output_type=str(output_type),
            do_denormalize=[not flag for flag in flags or [False] * len(image)],
        )
        return StableDiffusionPipelineOutput(images, flags)

    def _full_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size asked for; what is left out is as the UNet was trained."""
        if height is None or width is None:
            size = self._part("unet", "drawing").config.sample_size
            if size is None:
                raise InputError("The UNet has no default size.", hint="Pass `height` and `width`.")
            rows, columns = (size, size) if isinstance(size, int) else size
            height = rows * self.vae_scale_factor if height is None else height
            width = columns * self.vae_scale_factor if width is None else width
        return checks.image_size(height, width)

    # The stations of a call, under diffusers' names

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of prompts and negative prompts; see `sfumato.text.conditioning`.

        Args:
            lora_scale: weakens or strengthens LoRA layers in the text encoder.
        """
        stand_in = self.unet if self.text_encoder is None else None
        with stages.adapter_scale(self.text_encoder, lora_scale):
            return encode_prompt(
                prompt,
                tokenizer=self.tokenizer,
                text_encoder=self.text_encoder,
                device=device,
                num_images_per_prompt=num_images_per_prompt,
                do_classifier_free_guidance=do_classifier_free_guidance,
                negative_prompt=negative_prompt,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                clip_skip=clip_skip,
                dtype=None if stand_in is None else stand_in.dtype,
            )

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Tensor:
        """Deprecated: `encode_prompt` with both halves in one tensor, the negative first."""
        _deprecated("_encode_prompt()", "encode_prompt()")
        positive, negative = self.encode_prompt(*args, **kwargs)
        return positive if negative is None else torch.cat([negative, positive])

    def get_timesteps(
        self, num_inference_steps: int, strength: float, device: Any = None
    ) -> tuple[Tensor, int]:
        """The scheduler's timesteps for the last share of the steps, and how many steps these are.

        For pipelines that begin with a picture; the timesteps are where they were set, so that
        ``device`` changes nothing.
        """
        return stages.last_timesteps(self.scheduler, num_inference_steps, strength)

    def encode_image(
        self,
        image: Any,
        device: torch.device | str,
        num_images_per_prompt: int,
        output_hidden_states: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of a picture and of none, for IP-Adapters."""
        return ip_adapter.encode_image(
            image,
            self.image_encoder,
            self.feature_extractor,
            device,
            num_images_per_prompt,
            output_hidden_states,
        )

    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image: Any,
        ip_adapter_image_embeds: list[Tensor] | None,
        device: torch.device | str,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> list[Tensor]:
        """One tensor per IP-Adapter; see `sfumato.pipelines.ip_adapter`."""
        return ip_adapter.image_prompt(
            self,
            ip_adapter_image,
            ip_adapter_image_embeds,
            device,
            num_images_per_prompt,
            do_classifier_free_guidance,
        )

    def prepare_extra_step_kwargs(self, generator: Generators, eta: float) -> dict[str, Any]:
        """Those of ``eta`` and ``generator`` that the scheduler's ``step`` takes."""
        return accepted_options(self.scheduler.step, {"eta": eta, "generator": generator})

    def get_guidance_scale_embedding(
        self, w: Tensor, embedding_dim: int = 512, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Guidance scales (minus 1) as waves ``(n, embedding_dim)``, for distilled networks."""
        return stages.guidance_scale_embedding(w, embedding_dim, dtype)

    def run_safety_checker(
        self, image: Tensor | np.ndarray[Any, Any], device: torch.device, dtype: torch.dtype
    ) -> tuple[Any, list[bool] | None]:
        """The images, blackened where the checker objects, and its objections; None without."""
        if getattr(self, "safety_checker", None) is None:
            return image, None
        if isinstance(image, Tensor):
            pictures = self.image_processor.postprocess(image, output_type="pil")
        else:
            pictures = self.numpy_to_pil(image)
        return stages.check_safety(
            self.safety_checker, self.feature_extractor, pictures, image, device, dtype
        )

    def decode_latents(self, latents: Tensor) -> np.ndarray[Any, Any]:
        """Deprecated: latents to an array ``(batch, height, width, 3)`` in 0..1."""
        _deprecated("decode_latents", "VaeImageProcessor.postprocess(...)")
        return self.image_processor.postprocess(stages.decode(self.vae, latents), "np")


def _deprecated(name: str, instead: str) -> None:
    warnings.warn(
        f"`{name}` is deprecated and will be removed in a future version. Use `{instead}` instead.",
        FutureWarning,
        stacklevel=3,
    )
