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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sfumato.diffusion.denoise import broken_in_step
from sfumato.diffusion.plan import Plan
from sfumato.errors import NumericalError
from sfumato.jax import storage
from sfumato.jax.base import FlaxDiffusionPipeline
from sfumato.jax.calls import Call, check_plain, read_call
from sfumato.jax.devices import Spread, gather
from sfumato.jax.program import Inputs, Settings, normal
from sfumato.jax.sampling import rows_of
from sfumato.outputs import BaseOutput
from sfumato.text.prompt_inputs import check_clip_skip, checked_prompt
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


class FlaxStableDiffusionPipeline(FlaxDiffusionPipeline):
    """Text to image in JAX."""

    def prepare_inputs(self, prompt: str | list[str]) -> np.ndarray[Any, Any]:
        """Ids ``(B, L)`` of prompts, padded and cut to what the text encoder takes.

        Raises:
            InputError: (a ``ValueError``) for anything but a text or a list of texts.
        """
        texts = maybe_convert_prompt(checked_prompt(prompt), self.tokenizer)
        positions = self.text_encoder.config.max_position_embeddings
        length = min(self.tokenizer.model_max_length, positions)
        return self.tokens([texts] if isinstance(texts, str) else texts, length)

    def tokens(self, texts: list[str], length: int) -> np.ndarray[Any, Any]:
        """Ids ``(B, length)`` of texts, padded and cut."""
        batch = self.tokenizer(
            texts,
            padding="max_length",
            max_length=max(length, 2),  # there is always a beginning and an end
            truncation=True,
            return_tensors="np",
        )
        return np.asarray(batch.input_ids, np.int32)[:, :length]

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
        clip_skip: int | None = None,
        eta: float = 0.0,
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
            clip_skip: how many of the text encoder's last layers to leave out; of prompts, not of
                negative prompts.
            eta: share of fresh noise in each step, 0..1, of samplers that take one, such as DDIM.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range.
            NumericalError: NaN or infinity appeared.
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
        check_plain(self)
        plan = storage.as_functional(self.scheduler).plan(num_inference_steps, eta=eta)
        noise = normal(call.keys, call.shape) if call.latents is None else call.latents
        inputs = Inputs(
            ids=call.ids,
            negative_ids=call.negative_ids,
            x=noise.astype(jnp.float32) * plan.init_sigma,
            scale=call.scale,
            keys=call.keys,
            rows=rows_of(plan),
        )
        settings = self._settings(plan, call.scale, clip_skip)
        images = self._compute(call, plan, inputs, settings, jit)
        return self._finish(call, images, return_dict)

    def _settings(self, plan: Plan, scale: Array, clip_skip: int | None) -> Settings:
        """What a program is to be made for."""
        if clip_skip is not None:
            check_clip_skip(clip_skip, self.text_encoder.config.num_hidden_layers)
        distilled = self.unet.config.time_cond_proj_dim is not None
        return Settings.of(plan, scale, clip_skip or 0, distilled)

    def _compute(
        self, call: Call, plan: Plan, inputs: Inputs, settings: Settings, jit: bool
    ) -> Array:
        """Pictures ``(B, H, W, 3)``; `NumericalError` when the numbers break on the way."""
        params = {name: call.params[name] for name in ("text_encoder", "unet", "vae")}
        mesh = call.mesh or self.mesh
        if mesh is not None:
            spread = Spread(mesh)
            spread.check(inputs.x.shape[0])
            params = spread.params(params)
            inputs = _spread(spread, inputs)
        if jit:
            drawn = self._draw(params, inputs, settings=settings)
            broken = int(drawn.broken)
            if broken < len(plan):
                raise broken_in_step(broken, len(plan), float(plan.timesteps[broken]))
            return _sound(drawn.images, drawn.sound)
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
            if not bool(jnp.isfinite(progress.x).all()):
                raise broken_in_step(number, len(plan), float(plan.timesteps[number]))
        return self._decoded(params, progress.x)

    def _decoded(self, params: Mapping[str, Any], x: Array) -> Array:
        """Latents to pictures ``(B, H, W, 3)``; `NumericalError` for NaN and infinity in them."""
        return _sound(*self._decode(params, x))

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


def _sound(images: Array, sound: Array) -> Array:
    """Pictures, or `NumericalError` where they are not ``sound``."""
    if not bool(sound):
        raise NumericalError(
            "NaN or infinity in the picture: the autoencoder (`vae`) overflowed.",
            hint="In float16 some autoencoders do: load the pipeline with dtype=jnp.float32.",
        )
    return images


def _spread(spread: Spread, inputs: Inputs) -> Inputs:
    """The inputs on their devices: what belongs to pictures is spread, the rest copied."""
    pictures = ("ids", "negative_ids", "x", "scale", "extra")
    placed = {
        name: (spread.batch if name in pictures else spread.everywhere)(value)
        for name, value in inputs._asdict().items()
        if value is not None
    }
    return inputs._replace(**placed)
