"""The computation of a call: pure functions of parameters and arrays, compiled as wanted.

    encode     ids of prompts to context
    denoise    one `lax.scan` over the sampler's table, the network and guidance inside
    decode     latents to pictures

`Program.draw` is all three in one function, which ``jit`` makes one program of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sfumato.diffusion.plan import Limit, Plan
from sfumato.jax.models import FlaxAutoencoderKL, FlaxCLIPTextModel, FlaxUNet2DConditionModel
from sfumato.jax.params import cast_floating
from sfumato.jax.sampling import Network, Noise, Progress, Rows, advance, begin, guided, sample


class Inputs(NamedTuple):
    """What a drawing starts from; arrays of a batch of B pictures.

    Attributes:
        ids, negative_ids: ``(B, L)`` int32.
        x: ``(B, C, h, w)`` float32, multiplied by the plan's ``init_sigma`` already.
        scale: of the guidance, ``(B,)`` float32.
        keys: of the noise that samplers draw; each serves an equal part of the batch.
        rows: the sampler's table; `Program.predict` and `Program.advance` do without.
        extra: further channels for the network ``(B, C', h, w)``, or None.
        known: for inpainting with a plain network: mask ``(B, 1, h, w)``, the known latents, their
            noise, and what each row leaves of both ``(n, 2)``; or None.
    """

    ids: Array
    negative_ids: Array
    x: Array
    scale: Array
    keys: Array
    rows: Rows | None
    extra: Array | None = None
    known: tuple[Array, Array, Array, Array] | None = None


class Drawn(NamedTuple):
    """What a drawing comes to.

    Attributes:
        images: ``(B, H, W, 3)`` in 0..1, float32.
        broken: number of the first row after which some picture had NaN or infinity in it, or the
            number of rows.
        sound: whether no picture has, as the decoder gave it.
    """

    images: Array
    broken: Array
    sound: Array


class Settings(NamedTuple):
    """What a compiled program is made for.

    Attributes:
        limit: of the plan.
        guide: whether the network is asked about the negative prompts too.
        clip_skip: how many of the text encoder's last layers to leave out.
        tells_negative: whether the sampler wants the negative answer beside the guided one.
    """

    limit: Limit | None
    guide: bool
    clip_skip: int = 0
    tells_negative: bool = False

    @classmethod
    def of(cls, plan: Plan, scale: Array, clip_skip: int = 0, distilled: bool = False) -> Self:
        """For a sampler and the guidance of each picture.

        Args:
            plan: the sampler's table.
            scale: of the guidance, ``(B,)``.
            clip_skip: see above.
            distilled: whether the network is told the scale, and needs no negative answer.
        """
        tells = plan.wants_negative
        guide = not distilled and bool((scale > (0 if tells else 1)).any())
        return cls(plan.limit, guide, clip_skip, guide and tells)


@dataclass(frozen=True, eq=False)
class Program:
    """The networks of a pipeline, and what is computed with them."""

    vae: FlaxAutoencoderKL
    text_encoder: FlaxCLIPTextModel
    unet: FlaxUNet2DConditionModel

    def draw(self, params: Mapping[str, Any], inputs: Inputs, settings: Settings) -> Drawn:
        """The whole way from ids and noise to pictures."""
        assert inputs.rows is not None
        context = self.encode(params, inputs, settings)
        x, broken = sample(
            self._network(params, inputs, context, settings),
            inputs.x,
            inputs.rows,
            self._noise(inputs),
            settings.limit,
            after=self._after(inputs),
        )
        images, sound = self.decode(params, x)
        return Drawn(images, broken.min(), sound)

    def encode(self, params: Mapping[str, Any], inputs: Inputs, settings: Settings) -> Array:
        """The context: of the negative prompts first, then of the prompts; or of these alone.

        As in torch, no layers are left out for negative prompts.
        """
        weights = cast_floating(params["text_encoder"], self.text_encoder.dtype)
        skip = settings.clip_skip

        def states(ids: Array, clip_skip: int) -> Array:
            mask = words(ids, self.text_encoder.config.eos_token_id)
            found: Any = self.text_encoder.apply(weights, ids, mask, clip_skip=clip_skip)
            return found.last_hidden_state

        if not settings.guide:
            return states(inputs.ids, skip)
        if skip:
            return jnp.concatenate([states(inputs.negative_ids, 0), states(inputs.ids, skip)])
        return states(jnp.concatenate([inputs.negative_ids, inputs.ids]), 0)

    def begin(self, inputs: Inputs) -> Progress:
        """Before the first row."""
        assert inputs.rows is not None
        return begin(inputs.x, inputs.rows)

    def predict(
        self,
        params: Mapping[str, Any],
        inputs: Inputs,
        context: Array,
        x: Array,
        timestep: Array,
        settings: Settings,
    ) -> Array:
        """The guided answer of the network; compiled once for all samplers."""
        return self._network(params, inputs, context, settings)(x, timestep)

    def advance(
        self,
        inputs: Inputs,
        row: Rows,
        number: Array,
        progress: Progress,
        output: Array,
        settings: Settings,
    ) -> Progress:
        """One row of the table, given the network's answer; ``number`` is the row's."""
        noise = self._noise(inputs)(number) * row.draws
        progress, _ = advance(row, progress, output, noise, settings.limit)
        after = self._after(inputs)
        return progress if after is None else progress._replace(x=after(progress.x, number))

    def decode(self, params: Mapping[str, Any], x: Array) -> tuple[Array, Array]:
        """Latents to pictures ``(B, H, W, 3)`` in 0..1, and whether the numbers were finite."""
        latents = x / self.vae.config.scaling_factor
        weights = cast_floating(params["vae"], self.vae.dtype)
        decoded: Any = self.vae.decode(weights, latents)
        images = decoded.sample.astype(jnp.float32)
        sound = jnp.isfinite(images).all()
        return (images / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1), sound

    def _network(
        self, params: Mapping[str, Any], inputs: Inputs, context: Array, settings: Settings
    ) -> Network:
        """The network, with the channels that are given to it and the guidance around it."""
        weights = cast_floating(params["unet"], self.unet.dtype)  # once, not in every step
        width = self.unet.config.time_cond_proj_dim
        told = None if width is None else waves(inputs.scale - 1, width)

        def predict(x: Array, timestep: Array) -> Array:
            if inputs.extra is not None:
                times = x.shape[0] // inputs.extra.shape[0]
                x = jnp.concatenate([x, jnp.concatenate([inputs.extra] * times)], axis=1)
            out: Any = self.unet.apply(weights, x, timestep, context, timestep_cond=told)
            return out.sample

        return guided(predict, inputs.scale, settings.guide, settings.tells_negative)

    def _noise(self, inputs: Inputs) -> Noise:
        def draw(number: Array) -> Array:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(inputs.keys)
            return normal(keys, inputs.x.shape)

        return draw

    def _after(self, inputs: Inputs) -> Any:
        if inputs.known is None:
            return None
        mask, image, noise, levels = inputs.known

        def keep(x: Array, number: Array) -> Array:
            known = levels[number, 0] * image + levels[number, 1] * noise
            return (1 - mask) * known + mask * x

        return keep


def words(ids: Array, end: int) -> Array:
    """Ones ``(B, L)`` up to the end of each text, and zeros for the padding behind it."""
    # The token 2 is the mistake of early checkpoints: see CLIPTextConfig.
    last = (ids if end == 2 else ids == end).argmax(axis=1)
    return (jnp.arange(ids.shape[1]) <= last[:, None]).astype(jnp.float32)


def waves(w: Array, width: int) -> Array:
    """Scales ``(B,)`` less one as waves ``(B, width)``, for distilled networks.

    The counterpart of `sfumato.pipelines.stages.guidance_scale_embedding`.
    """
    half = width // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000.0) / (half - 1))
    # Rounded once, because angles are in the thousands.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (1000.0 * w[:, None]) * frequencies[None]
    found = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return jnp.pad(found, ((0, 0), (0, width % 2)))


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise ``(B, ...)``: each of K keys draws ``B / K`` pictures."""
    each = (shape[0] // keys.shape[0], *shape[1:])
    return jax.vmap(lambda key: jax.random.normal(key, each))(keys).reshape(shape)
