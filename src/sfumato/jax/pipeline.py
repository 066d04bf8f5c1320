"""Text to image in JAX, under the name and with the calling conventions of diffusers.

    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained("folder", dtype=jnp.bfloat16)
    ids = pipeline.prepare_inputs(["a red apple"])
    images = pipeline(ids, params, jax.random.PRNGKey(0), jit=True).images

The pipeline holds no parameters and remembers nothing between calls but compiled programs, so it
may be called from several threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from PIL import Image

from sfumato.checkpoints.hub_names import take_hub_options
from sfumato.diffusion.plan import Plan
from sfumato.errors import InputError, UnknownKeywordError, did_you_mean
from sfumato.jax import storage
from sfumato.jax.calls import Call, read_call
from sfumato.jax.devices import Spread, gather
from sfumato.jax.models import FlaxAutoencoderKL, FlaxCLIPTextModel, FlaxUNet2DConditionModel
from sfumato.jax.params import as_array
from sfumato.jax.program import Inputs, Program, Settings, normal
from sfumato.jax.sampling import rows_of
from sfumato.jax.schedulers import FlaxScheduler
from sfumato.outputs import BaseOutput
from sfumato.pipelines.number_checks import finite_number
from sfumato.text.prompt_inputs import check_clip_skip, checked_prompt
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.text.written_out import maybe_convert_prompt


@dataclass
class FlaxStableDiffusionPipelineOutput(BaseOutput):
    """What a call returns.

    Attributes:
        images: ``(B, H, W, 3)`` float32 in 0..1; ``(devices, B / devices, H, W, 3)`` for arguments
            with an axis of devices.
        nsfw_content_detected: whether the safety checker objects to each; all False without one.
    """

    images: np.ndarray[Any, Any] | Array
    nsfw_content_detected: list[bool]


class FlaxDiffusionPipeline:
    """Base of the JAX pipelines: components by name, folders, progress."""

    #: Components that may be None.
    _optional: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor")

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
        self.safety_checker, self.feature_extractor = safety_checker, feature_extractor
        self.dtype = jnp.dtype(dtype)
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
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
        """
        hub = take_hub_options(kwargs)
        names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", *cls._optional)
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        known = {*names, "from_pt", "use_memory_efficient_attention", "split_head_dim", "revision"}
        for name in kwargs:
            if name not in known:
                raise UnknownKeywordError(
                    f"{cls.__name__}.from_pretrained() has no argument `{name}`."
                    f"{did_you_mean(name, known)}"
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


class FlaxStableDiffusionPipeline(FlaxDiffusionPipeline):
    """Text to image in JAX."""

    def prepare_inputs(self, prompt: str | list[str]) -> np.ndarray[Any, Any]:
        """Ids ``(B, L)`` of prompts, padded and cut to what the text encoder takes.

        Raises:
            InputError: (a ``ValueError``) for anything but a text or a list of texts.
        """
        texts = maybe_convert_prompt(checked_prompt(prompt), self.tokenizer)
        positions = self.text_encoder.config.max_position_embeddings
        batch = self.tokenizer(
            [texts] if isinstance(texts, str) else texts,
            padding="max_length",
            max_length=min(self.tokenizer.model_max_length, positions),
            truncation=True,
            return_tensors="np",
        )
        return np.asarray(batch.input_ids, np.int32)

    def __call__(
        self,
        prompt_ids: Array | np.ndarray[Any, Any],
        params: Mapping[str, Any],
        prng_seed: Array,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | Array = 7.5,
        latents: Array | None = None,
        neg_prompt_ids: Array | np.ndarray[Any, Any] | None = None,
        return_dict: bool = True,
        jit: bool = False,
        *,
        clip_skip: int = 0,
    ) -> FlaxStableDiffusionPipelineOutput | tuple[Any, list[bool]]:
        """Draw.

        Args:
            prompt_ids: from `prepare_inputs`, ``(B, L)``; or with an axis of devices before it, as
                must then be the other arguments that are arrays (see `sfumato.jax.devices`).
            params: as `from_pretrained` returns them.
            prng_seed: a key of `jax.random`.
            num_inference_steps: how many.
            height, width: in pixels; by default as the model was trained.
            guidance_scale: of classifier-free guidance, a number or one per picture. At 1 or less
                the negative prompts are not asked about.
            latents: the noise to start from, ``(B, C, H / f, W / f)``.
            neg_prompt_ids: as ``prompt_ids``; empty texts by default.
            return_dict: return an output object rather than a tuple.
            jit: compile the whole call into one program; otherwise step by step, with a progress
                bar. A program is made once for every size, batch and number of steps.
            clip_skip: how many of the text encoder's last layers to leave out.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range.
        """
        call = read_call(
            self,
            prompt_ids=prompt_ids,
            neg_prompt_ids=neg_prompt_ids,
            params=params,
            prng_seed=prng_seed,
            guidance_scale=guidance_scale,
            latents=latents,
            size=(height, width),
        )
        check_clip_skip(clip_skip, self.text_encoder.config.num_hidden_layers)
        plan = storage.as_functional(self.scheduler).plan(num_inference_steps)
        noise = normal(call.keys, call.shape) if call.latents is None else call.latents
        inputs = Inputs(
            ids=call.ids,
            negative_ids=call.negative_ids,
            x=noise.astype(jnp.float32) * plan.init_sigma,
            scale=call.scale,
            keys=call.keys,
            rows=rows_of(plan),
        )
        settings = Settings.of(plan, call.scale, clip_skip)
        images = self._compute(call, plan, inputs, settings, jit)
        return self._finish(call, images, return_dict)

    def _compute(
        self, call: Call, plan: Plan, inputs: Inputs, settings: Settings, jit: bool
    ) -> Array:
        """Pictures ``(B, H, W, 3)``."""
        params = {name: call.params[name] for name in ("text_encoder", "unet", "vae")}
        mesh = call.mesh or self.mesh
        if mesh is not None:
            spread = Spread(mesh)
            spread.check(inputs.x.shape[0])
            params = spread.params(params)
            inputs = _spread(spread, inputs)
        if jit:
            return self._draw(params, inputs, settings=settings)
        # What the network is compiled for does not depend on the sampler.
        asked, given = settings._replace(limit=None), inputs._replace(rows=None)
        context = self._encode(params, given, settings=asked)
        progress, rows = self._program.begin(inputs), rows_of(plan)
        for number in self.progress_bar(range(len(plan))):
            row = jax.tree.map(lambda column, at=number: column[at], rows)
            seen = progress.x * row.input_scale
            output = self._predict(params, given, context, seen, row.timesteps, settings=asked)
            progress = self._advance(
                given, row, jnp.int32(number), progress, output, settings=settings
            )
        return self._decode(params, progress.x)

    def _finish(self, call: Call, images: Array, return_dict: bool) -> Any:
        """Judge the pictures and give them the form of the arguments."""
        flags = [False] * images.shape[0]
        if self.safety_checker is not None:
            checked, flags = self.safety_checker.check(
                gather(images), self.feature_extractor, call.params["safety_checker"]
            )
            images = jnp.asarray(checked)
        if call.devices is not None:
            images = images.reshape(call.devices, -1, *images.shape[1:])
        if not return_dict:
            return images, flags
        return FlaxStableDiffusionPipelineOutput(images, flags)


def _spread(spread: Spread, inputs: Inputs) -> Inputs:
    """The inputs on their devices: what belongs to pictures is spread, the rest copied."""
    pictures = ("ids", "negative_ids", "x", "scale", "extra")
    placed = {
        name: (spread.batch if name in pictures else spread.everywhere)(value)
        for name, value in inputs._asdict().items()
        if value is not None
    }
    return inputs._replace(**placed)
