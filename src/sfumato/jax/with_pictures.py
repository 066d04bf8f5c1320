"""Drawing on given pictures in JAX: image to image, and inpainting.

Both begin with the text-to-image pipeline's call, and differ in where the latents start and what
happens to them after each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sfumato.diffusion.plan import Plan
from sfumato.errors import InputError
from sfumato.jax import storage
from sfumato.jax.calls import Call, check_plain, read_call
from sfumato.jax.pictures import as_masks, as_pictures
from sfumato.jax.pipeline import FlaxStableDiffusionPipeline, FlaxStableDiffusionPipelineOutput
from sfumato.jax.program import Inputs, normal
from sfumato.jax.sampling import rows_of
from sfumato.pipelines.number_checks import check_strength, whole_number


class FlaxStableDiffusionImg2ImgPipeline(FlaxStableDiffusionPipeline):
    """Image to image in JAX."""

    def prepare_inputs(self, prompt: str | list[str], image: Any = None) -> Any:
        """Ids ``(B, L)`` of prompts, and pictures ``(B, 3, H, W)`` in -1..1 where they are given.

        Args:
            prompt: one text or several.
            image: see `sfumato.jax.pictures.as_pictures`.
        """
        ids = super().prepare_inputs(prompt)
        return ids if image is None else (ids, as_pictures(image, self.vae_scale_factor))

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt_ids: Array | np.ndarray[Any, Any],
        image: Array | np.ndarray[Any, Any],
        params: Mapping[str, Any],
        prng_seed: Array,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | Array = 7.5,
        noise: Array | None = None,
        neg_prompt_ids: Array | np.ndarray[Any, Any] | None = None,
        return_dict: bool = True,
        jit: bool = False,
        *,
        clip_skip: int | None = None,
        eta: float = 0.0,
    ) -> FlaxStableDiffusionPipelineOutput | tuple[Any, list[bool]]:
        """Draw on pictures.

        Args:
            prompt_ids, image: from `prepare_inputs`; ``image`` may also be latents
                ``(B, C, h, w)``, scaled as the UNet knows them.
            params, prng_seed: as of `FlaxStableDiffusionPipeline`.
            strength: how much to draw anew, 0..1: only this share of the steps is taken.
            num_inference_steps: how many steps there are of which to take a share.
            height, width: have to be those of the picture, where they are given.
            guidance_scale: as of `FlaxStableDiffusionPipeline`.
            noise: in place of a random draw, ``(B, C, h, w)``.
            neg_prompt_ids, return_dict, jit, clip_skip, eta: as of `FlaxStableDiffusionPipeline`.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range.
        """
        check_strength(strength)
        array = _merged(image)
        latent = array.shape[1] == self.vae.config.latent_channels != 3
        factor = self.vae_scale_factor if latent else 1
        size = _size(array.shape[2] * factor, array.shape[3] * factor, height, width)
        call = read_call(
            self,
            prompt_ids=prompt_ids,
            neg_prompt_ids=neg_prompt_ids,
            params=params,
            prng_seed=prng_seed,
            guidance_scale=guidance_scale,
            latents=noise,
            size=size,
            of_picture=True,
        )
        check_plain(self)
        plan = plan_of_share(self, num_inference_steps, strength, eta)
        known = encoded(self, call, _shared("image", array, call.shape[0]), latent)
        if plan is None:
            return self._finish(call, self._decoded(_drawing(call), known), return_dict)
        drawn = normal(call.keys, call.shape) if call.latents is None else call.latents
        alpha, sigma = levels(plan)[0]
        inputs = Inputs(
            ids=call.ids,
            negative_ids=call.negative_ids,
            x=alpha * known + sigma * drawn.astype(jnp.float32),
            scale=call.scale,
            keys=call.keys,
            rows=rows_of(plan),
        )
        settings = self._settings(plan, call.scale, clip_skip)
        images = self._compute(call, plan, inputs, settings, jit)
        return self._finish(call, images, return_dict)


class FlaxStableDiffusionInpaintPipeline(FlaxStableDiffusionPipeline):
    """Inpainting in JAX, with networks made for it (9 channels) and with plain ones."""

    _outdated_settings: ClassVar[dict[str, Any]] = {"steps_offset": 1, "skip_prk_steps": True}

    def prepare_inputs(self, prompt: str | list[str], image: Any = None, mask: Any = None) -> Any:
        """Ids of prompts; with a picture also what is to stay of it, and the mask.

        Returns:
            Ids ``(B, L)``, pictures ``(B, 3, H, W)`` in -1..1, for networks made for inpainting
            with grey where the mask is one, and masks ``(B, 1, H, W)``.
        """
        ids = super().prepare_inputs(prompt)
        if image is None:
            return ids
        pictures = as_pictures(image, self.vae_scale_factor)
        masks = as_masks(mask, *pictures.shape[2:])
        rest = pictures if self._is_plain else pictures * (masks < 0.5)
        return ids, rest, masks

    @property
    def _is_plain(self) -> bool:
        return self.unet.config.in_channels == self.vae.config.latent_channels

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt_ids: Array | np.ndarray[Any, Any],
        mask: Array | np.ndarray[Any, Any],
        masked_image: Array | np.ndarray[Any, Any],
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
        """Draw the masked part anew.

        Args:
            prompt_ids, mask, masked_image: from `prepare_inputs`; ``masked_image`` may also be
                latents ``(B, C, h, w)``, scaled as the UNet knows them.
            params, prng_seed, num_inference_steps: as of `FlaxStableDiffusionPipeline`.
            height, width: are those of the picture.
            guidance_scale, latents, neg_prompt_ids, return_dict, jit, clip_skip, eta: as there.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range, or the network takes
                neither 4 nor 9 channels.
        """
        image, masks = _merged(masked_image), _merged(mask)
        channels = self.vae.config.latent_channels
        latent = image.shape[1] == channels != 3
        factor = self.vae_scale_factor if latent else 1
        size = _size(image.shape[2] * factor, image.shape[3] * factor, height, width)
        if masks.shape[1] != 1:
            raise InputError(
                f"`mask` has to be an array (B, 1, H, W) but has the shape {masks.shape}.",
                hint="pipeline.prepare_inputs(prompt, image, mask) makes it.",
            )
        if self.unet.config.in_channels not in (channels, 2 * channels + 1):
            raise InputError(
                f"The unet has {self.unet.config.in_channels} input channels; inpainting takes"
                f" {channels} or {2 * channels + 1}.",
                hint="Load a model for inpainting, or a text-to-image model.",
            )
        call = read_call(
            self,
            prompt_ids=prompt_ids,
            neg_prompt_ids=neg_prompt_ids,
            params=params,
            prng_seed=prng_seed,
            guidance_scale=guidance_scale,
            latents=latents,
            size=size,
            of_picture=True,
        )
        plan = storage.as_functional(self.scheduler).plan(num_inference_steps, eta=eta)
        rest = encoded(self, call, _shared("masked_image", image, call.shape[0]), latent)
        small = _nearest(_shared("mask", masks, call.shape[0]), call.shape[2:])
        noise = normal(call.keys, call.shape) if call.latents is None else call.latents
        noise = noise.astype(jnp.float32)
        extra = known = None
        if self._is_plain:
            known = small, rest, noise, jnp.asarray(_after_rows(plan), jnp.float32)
        else:
            extra = jnp.concatenate([small, rest], axis=1)
        inputs = Inputs(
            ids=call.ids,
            negative_ids=call.negative_ids,
            x=noise * plan.init_sigma,
            scale=call.scale,
            keys=call.keys,
            rows=rows_of(plan),
            extra=extra,
            known=known,
        )
        settings = self._settings(plan, call.scale, clip_skip)
        images = self._compute(call, plan, inputs, settings, jit)
        return self._finish(call, images, return_dict)


def plan_of_share(pipeline: Any, steps: int, strength: float, eta: float) -> Plan | None:
    """The table of the last steps, as many as ``strength`` says; None when there are none.

    PNDM has a call more than steps, which is left even then, as in torch.
    """
    scheduler = storage.as_functional(pipeline.scheduler)
    whole_number("num_inference_steps", steps, 1, len(scheduler))
    start = (steps - min(int(steps * strength), steps)) * scheduler.order
    calls = len(scheduler.plan(steps, eta=eta))
    return scheduler.plan(steps, start, eta=eta) if start < calls else None


def levels(plan: Plan) -> np.ndarray[Any, Any]:
    """What x is made of before each row: shares of picture and noise, ``(n, 2)``.

    The network sees ``alpha * picture + sigma * noise`` with squares that add up to one, whose
    quotient the plan has; x is that before it was scaled for the network.
    """
    with np.errstate(invalid="ignore"):
        alpha = 1 / np.hypot(1, plan.sigmas)
        sigma = np.where(np.isinf(plan.sigmas), 1.0, plan.sigmas * alpha)
    return np.stack([alpha, sigma], axis=1) / plan.input_scale[:, None]


def _after_rows(plan: Plan) -> np.ndarray[Any, Any]:
    """What x is made of after each row: as before the next, and the picture alone at the end."""
    return np.concatenate([levels(plan)[1:], [[1.0, 0.0]]])


def encoded(pipeline: Any, call: Call, image: Array, latent: bool) -> Array:
    """Latents ``(B, C, h, w)`` of pictures, scaled for the UNet; latents as they are."""
    if latent:
        return image.astype(jnp.float32)
    distribution: Any = pipeline.vae.encode(call.params["vae"], image).latent_dist
    spread = jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 1))(call.keys)
    drawn = distribution.mean + distribution.std * normal(spread, distribution.mean.shape)
    return drawn * pipeline.vae.config.scaling_factor


def _drawing(call: Call) -> dict[str, Any]:
    return {name: call.params[name] for name in ("text_encoder", "unet", "vae")}


def _size(rows: int, columns: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Of a picture, which ``height`` and ``width`` have to be where they are given."""
    for name, given, own in (("height", height, rows), ("width", width, columns)):
        if given is not None and given != own:
            raise InputError(
                f"`{name}` is {str(given)[:80]}, but the picture's is {own}.",
                hint="Resize the picture.",
            )
    return rows, columns


def _merged(array: Any) -> Array:
    """Pictures without an axis of devices."""
    found = jnp.asarray(array)
    found = found.reshape(-1, *found.shape[2:]) if found.ndim == 5 else found
    if found.ndim != 4 or not jnp.issubdtype(found.dtype, jnp.floating):
        raise InputError(
            f"Pictures have to be floating-point arrays (B, C, H, W) but are {found.dtype}"
            f" {found.shape}.",
            hint="pipeline.prepare_inputs(prompt, image) makes them.",
        )
    if not bool(jnp.isfinite(found).all()):
        raise InputError("A picture has NaN or infinity in it.")
    return found


def _shared(name: str, array: Array, rows: int) -> Array:
    """One for each of ``rows`` pictures, in turn."""
    if rows % array.shape[0]:
        raise InputError(
            f"Cannot duplicate `{name}` of batch size {array.shape[0]} to {rows} text prompts.",
            hint="Pass one picture, or one per prompt.",
        )
    return jnp.tile(array, (rows // array.shape[0], 1, 1, 1))


def _nearest(masks: Array, size: tuple[int, ...]) -> Array:
    """Masks at the size of latents: every so many rows and columns."""
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size, masks.shape[2:], strict=True)
    )
    return masks[:, :, rows][:, :, :, columns]
