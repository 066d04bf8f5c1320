"""The computation of a call: pure functions of parameters and arrays, compiled as wanted.

    encode     ids of prompts to context
    denoise    one `lax.scan` over the sampler's table, the network and guidance inside
    decode     latents to pictures

`Program.draw` is all three in one function, which ``jit`` makes one program of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
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
    def of(cls, plan: Plan, scale: Array, clip_skip: int = 0) -> Self:
        """For a sampler and the guidance of each picture."""
        tells = plan.wants_negative
        guide = bool((scale > (0 if tells else 1)).any())
        return cls(plan.limit, guide, clip_skip, guide and tells)


@dataclass(frozen=True, eq=False)
class Program:
    """The networks of a pipeline, and what is computed with them."""

    vae: FlaxAutoencoderKL
    text_encoder: FlaxCLIPTextModel
    unet: FlaxUNet2DConditionModel

    def draw(self, params: Mapping[str, Any], inputs: Inputs, settings: Settings) -> Array:
        """Pictures ``(B, H, W, 3)`` in 0..1, float32."""
        assert inputs.rows is not None
        context = self.encode(params, inputs, settings)
        x = sample(
            self._network(params, inputs, context, settings),
            inputs.x,
            inputs.rows,
            self._noise(inputs),
            settings.limit,
            after=self._after(inputs),
        )
        return self.decode(params, x)

    def encode(self, params: Mapping[str, Any], inputs: Inputs, settings: Settings) -> Array:
        """The context: of the negative prompts first, then of the prompts; or of these alone."""
        ids = inputs.ids
        if settings.guide:
            ids = jnp.concatenate([inputs.negative_ids, ids])
        weights = cast_floating(params["text_encoder"], self.text_encoder.dtype)
        encoded: Any = self.text_encoder.apply(weights, ids, clip_skip=settings.clip_skip)
        return encoded.last_hidden_state

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

    def decode(self, params: Mapping[str, Any], x: Array) -> Array:
        """Latents to pictures ``(B, H, W, 3)`` in 0..1."""
        latents = x / self.vae.config.scaling_factor
        weights = cast_floating(params["vae"], self.vae.dtype)
        decoded: Any = self.vae.decode(weights, latents)
        images = (decoded.sample.astype(jnp.float32) / 2 + 0.5).clip(0, 1)
        return images.transpose(0, 2, 3, 1)

    def _network(
        self, params: Mapping[str, Any], inputs: Inputs, context: Array, settings: Settings
    ) -> Network:
        """The network, with the channels that are given to it and the guidance around it."""
        weights = cast_floating(params["unet"], self.unet.dtype)  # once, not in every step

        def predict(x: Array, timestep: Array) -> Array:
            if inputs.extra is not None:
                times = x.shape[0] // inputs.extra.shape[0]
                x = jnp.concatenate([x, jnp.concatenate([inputs.extra] * times)], axis=1)
            out: Any = self.unet.apply(weights, x, timestep, context)
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


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise ``(B, ...)``: each of K keys draws ``B / K`` pictures."""
    each = (shape[0] // keys.shape[0], *shape[1:])
    return jax.vmap(lambda key: jax.random.normal(key, each))(keys).reshape(shape)
