"""What all JAX pipelines are: components by name, folders and files, a mesh, progress."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from PIL import Image

from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.checkpoints.keywords import without_hub_keywords
from sfumato.errors import InputError, did_you_mean
from sfumato.jax import storage
from sfumato.jax.devices import is_replicated
from sfumato.jax.mixin import WITHOUT_EFFECT
from sfumato.jax.models import FlaxAutoencoderKL, FlaxCLIPTextModel, FlaxUNet2DConditionModel
from sfumato.jax.ops import floating_type
from sfumato.jax.params import as_array
from sfumato.jax.program import Program
from sfumato.jax.schedulers import FlaxScheduler
from sfumato.pipelines import repairs
from sfumato.pipelines.number_checks import finite_number
from sfumato.text.tokenizer import CLIPTokenizer

logger = logging.getLogger(__name__)


class FlaxDiffusionPipeline:
    """Base of the JAX pipelines: components by name, folders, progress."""

    #: Components that may be None.
    _optional: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor")
    #: What early checkpoints have wrong in their scheduler, as it has to be.
    _outdated_settings: ClassVar[dict[str, Any]] = {"steps_offset": 1, "clip_sample": False}

    def __init__(
        self,
        vae: FlaxAutoencoderKL,
        text_encoder: FlaxCLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: FlaxUNet2DConditionModel,
        scheduler: FlaxScheduler,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        dtype: Any = jnp.float32,
    ) -> None:
        self.vae, self.text_encoder, self.unet = vae, text_encoder, unet
        self.tokenizer = tokenizer
        self.scheduler: Any = storage.as_functional(scheduler)
        repairs.repair_scheduler(self.scheduler, self._outdated_settings)
        self.safety_checker, self.feature_extractor = safety_checker, feature_extractor
        self.dtype = floating_type(dtype)
        self.mesh: Mesh | None = None
        self._progress_bar_config: dict[str, Any] = {}
        program = Program(vae, text_encoder, unet)
        self._draw = jax.jit(program.draw, static_argnames="settings")
        self._encode = jax.jit(program.encode, static_argnames="settings")
        self._predict = jax.jit(program.predict, static_argnames="settings")
        self._advance = jax.jit(program.advance, static_argnames="settings")
        self._decode = jax.jit(program.decode)
        self._program = program

    @property
    def components(self) -> dict[str, Any]:
        """All components by name, None for absent ones."""
        names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", *self._optional)
        return {name: getattr(self, name) for name in names}

    @property
    def vae_scale_factor(self) -> int:
        """How many pixels a latent is wide."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        dtype: Any = jnp.float32,
        *,
        variant: str | None = None,
        **kwargs: Any,
    ) -> tuple[Self, dict[str, Any]]:
        """A pipeline and its parameters, from a folder in diffusers' layout or from the hub.

        Args:
            pretrained_model_name_or_path: the folder, or a name on the hub.
            dtype: in which the networks compute.
            variant: such as ``"fp16"``.
            kwargs: components by name, whose parameters the caller adds to what is returned; how
                to ask the hub; ``from_pt``, ``use_memory_efficient_attention`` and
                ``split_head_dim`` are accepted and needed no longer.

        Returns:
            The pipeline, and a dictionary of the parameters of ``text_encoder``, ``unet``, ``vae``
            (flat dictionaries under the names of the files) and the state of ``scheduler``.

        Raises:
            ModelNotFoundError: (an ``OSError``) no such folder, or something is missing in it.
            CheckpointError: (an ``OSError``) a file is damaged.
            ConfigError: (a ``ValueError``) a configuration is wrong.
            InputError: (a ``ValueError``) there are no files of the variant.
        """
        hub = take_hub_options(kwargs)
        kwargs = without_hub_keywords(kwargs)
        names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", *cls._optional)
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        known = {*names, "dtype", "variant", *WITHOUT_EFFECT}
        for name in set(kwargs) - known:
            logger.warning(
                "Keyword arguments {'%s'} are not expected by %s and will be ignored.%s",
                name,
                cls.__name__,
                did_you_mean(name, known),
            )
        components, params = storage.read_pipeline(
            pretrained_model_name_or_path, given, dtype=dtype, variant=variant, hub=hub
        )
        pipeline = cls(**components, dtype=dtype)
        params["scheduler"] = pipeline.scheduler.create_state()
        return pipeline, params

    @classmethod
    def from_single_file(
        cls,
        path: str | PathLike[str],
        dtype: Any = jnp.float32,
        *,
        scheduler: Any = None,
        extract_ema: bool = False,
        prediction_type: str | None = None,
    ) -> tuple[Self, dict[str, Any]]:
        """A pipeline and its parameters from a checkpoint in one file, ``.safetensors``, ``.ckpt``
        or ``.gguf``. Reading those takes torch.

        Args:
            path: the file.
            dtype: in which the networks compute; the parameters keep the type of the file.
            scheduler: in place of the model's own.
            extract_ema: use the averaged weights of the UNet.
            prediction_type: what the UNet predicts, when the file does not tell.

        Raises:
            CheckpointError: (an ``OSError``) the file is damaged, unsafe, or no whole model.
        """
        from sfumato.checkpoints.original.arrays import read_model

        found = read_model(path, extract_ema=extract_ema, prediction_type=prediction_type)
        networks = {
            name: network_class(found.configs[name], dtype=dtype)
            for name, network_class in storage.NETWORKS.items()
        }
        chosen = found.scheduler if scheduler is None else scheduler
        pipeline = cls(**networks, tokenizer=found.tokenizer, scheduler=chosen, dtype=dtype)  # pyright: ignore[reportArgumentType]
        params: dict[str, Any] = {
            name: {key: as_array(tensor) for key, tensor in found.tensors[name].items()}
            for name in networks
        }
        params["scheduler"] = pipeline.scheduler.create_state()
        return pipeline, params

    def load_lora_weights(
        self, params: Mapping[str, Any], source: Any, scale: float = 1.0, **options: Any
    ) -> dict[str, Any]:
        """Parameters with a LoRA (or LoHa, LoKr, ...) merged in; reading it takes torch.

        Args:
            params: as `from_pretrained` returns them, not replicated; they stay as they are.
            source: a file, a folder, or a name on the hub.
            scale: strength of the adapters.
            options: ``weight_name``, ``subfolder``, ``use_safetensors``; and how to ask the hub.

        Raises:
            AdapterError: (a ``ValueError``) the file fits none of the layers, or fits them half.
            CheckpointError: (an ``OSError``) the file is damaged or unsafe.
        """
        from sfumato.adapters.arrays import merged_weights

        names = ("unet", "text_encoder")
        changed = merged_weights(
            {name: params[name] for name in names},
            {name: getattr(self, name).config for name in names},
            source,
            finite_number("scale", scale),
            **options,
        )
        merged = dict(params)
        for name, weights in changed.items():
            old = params[name]
            new = {key: jnp.asarray(array, old[key].dtype) for key, array in weights.items()}
            merged[name] = {**old, **new}
        return merged

    def load_textual_inversion(
        self, params: Mapping[str, Any], source: Any, token: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Parameters with further tokens, which the tokenizer then knows; reading takes torch.

        Args:
            params: as `from_pretrained` returns them, not replicated; they stay as they are.
            source, token, options: as `StableDiffusionPipeline.load_textual_inversion` has them.

        Raises:
            InputError: (a ``ValueError``) a token is taken, or of another width.
            CheckpointError: (an ``OSError``) a file is missing, damaged or unsafe.
        """
        from sfumato.text.inversion_arrays import with_inversions

        name = "text_model.embeddings.token_embedding.weight"
        old = params["text_encoder"][name]
        rows, self.text_encoder.config = with_inversions(
            self.tokenizer,
            np.asarray(old, np.float32),
            self.text_encoder.config,
            source,
            token,
            **options,
        )
        table = jnp.asarray(rows, old.dtype)
        return {**params, "text_encoder": {**params["text_encoder"], name: table}}

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        params: Mapping[str, Any],
        push_to_hub: bool = False,
    ) -> None:
        """Write a folder that every Stable Diffusion pipeline reads, those of torch too.

        Args:
            save_directory: the folder; made when missing.
            params: as `from_pretrained` returns them, not replicated.
            push_to_hub: has to stay False; sfumato uploads nothing.
        """
        if push_to_hub:
            raise InputError("`push_to_hub` has to be False: sfumato uploads nothing.")
        if is_replicated(params):
            raise InputError(
                "`params` has an axis of devices, which no file has.",
                hint="Pass unreplicate(params) of sfumato.jax.devices.",
            )
        storage.write_pipeline(save_directory, self.components, params)

    def use_mesh(self, mesh: Mesh | None) -> None:
        """Spread later calls over a mesh (see `sfumato.jax.devices.make_mesh`); None undoes it."""
        self.mesh = mesh

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Options of tqdm for calls with ``jit=False``; a compiled program shows no progress."""
        self._progress_bar_config = kwargs

    def progress_bar(self, iterable: Any) -> Any:
        """A tqdm bar; shown on a terminal, not in a pipe."""
        from tqdm.auto import tqdm

        return tqdm(iterable, **{"disable": None, **self._progress_bar_config})

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, Any] | Array) -> list[Image.Image]:
        """Pictures ``(..., H, W, 3)`` in 0..1 as PIL images."""
        array = np.asarray(images, np.float32)
        array = array.reshape(-1, *array.shape[-3:])
        return [Image.fromarray(np.uint8(np.round(255 * picture))) for picture in array]
