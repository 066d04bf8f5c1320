"""The arguments of a call, read and checked: one form, whichever the caller used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from sfumato.errors import InputError
from sfumato.jax.devices import make_mesh, unreplicate
from sfumato.pipelines.number_checks import finite_number, image_size

#: What a pipeline needs of ``params`` to draw.
NEEDED = ("text_encoder", "unet", "vae")


@dataclass(frozen=True)
class Call:
    """A call of B pictures.

    Attributes:
        ids, negative_ids: ``(B, L)`` int32.
        params: without an axis of devices.
        keys: ``(K, ...)``, each for ``B / K`` pictures.
        scale: ``(B,)`` float32.
        latents: ``shape``, or None for a random draw.
        shape: of the latents, ``(B, C, h, w)``.
        devices: size of the axis of devices that the arguments had, or None.
        mesh: over these devices, or None.
    """

    ids: Array
    negative_ids: Array
    params: Mapping[str, Any]
    keys: Array
    scale: Array
    latents: Array | None
    shape: tuple[int, int, int, int]
    devices: int | None
    mesh: Mesh | None


def read_call(
    pipeline: Any,
    *,
    prompt_ids: Any,
    neg_prompt_ids: Any,
    params: Mapping[str, Any],
    prng_seed: Array,
    guidance_scale: Any,
    latents: Any,
    size: tuple[int | None, int | None],
) -> Call:
    """Check and unify; see `FlaxStableDiffusionPipeline.__call__`.

    Raises:
        InputError: an argument is of the wrong shape or out of range.
    """
    ids = _ids("prompt_ids", prompt_ids, pipeline)
    devices = ids.shape[0] if ids.ndim == 3 else None
    if devices is not None and devices > jax.local_device_count():
        raise InputError(
            f"`prompt_ids` is for {devices} devices, but there are {jax.local_device_count()}.",
            hint="Use sfumato.jax.devices.shard, or pass ids (batch, length).",
        )
    ids = ids.reshape(-1, ids.shape[-1])
    batch = ids.shape[0]
    if neg_prompt_ids is None:
        negative = _ids("prompt_ids", pipeline.prepare_inputs([""]), pipeline)
        negative = jnp.broadcast_to(negative, ids.shape)
    else:
        negative = _ids("neg_prompt_ids", neg_prompt_ids, pipeline)
        negative = negative.reshape(-1, negative.shape[-1])
    if negative.shape != ids.shape:
        raise InputError(
            f"`neg_prompt_ids` and `prompt_ids` have to be of one shape but are {negative.shape}"
            f" and {ids.shape}.",
            hint="Prepare one negative prompt per prompt.",
        )
    shape = _latent_shape(pipeline, batch, size)
    mesh = None if devices is None or devices == 1 else make_mesh(devices, local=True)
    return Call(
        ids=ids,
        negative_ids=negative,
        params=_params(params, devices),
        keys=_keys(prng_seed, devices),
        scale=_scale(guidance_scale, batch),
        latents=_latents(latents, shape),
        shape=shape,
        devices=devices,
        mesh=mesh,
    )


def _ids(name: str, ids: Any, pipeline: Any) -> Array:
    array = np.asarray(ids)
    if array.ndim not in (2, 3) or array.dtype.kind not in "iu" or 0 in array.shape:
        raise InputError(
            f"`{name}` has to be integers (batch, length) but is {array.dtype} {array.shape}.",
            hint=f"{name} = pipeline.prepare_inputs(['a cat'])",
        )
    rows = pipeline.text_encoder.config.vocab_size
    if array.min() < 0 or array.max() >= rows:
        raise InputError(f"`{name}` has ids outside of 0..{rows - 1}, the text encoder's tokens.")
    return jnp.asarray(array.astype(np.int32))


def _scale(given: Any, batch: int) -> Array:
    """One scale per picture."""
    if np.ndim(given) == 0 and not hasattr(given, "dtype"):
        given = finite_number("guidance_scale", given)
    array = np.asarray(given, np.float32).reshape(-1)
    if not np.isfinite(array).all():
        raise InputError("`guidance_scale` has NaN or infinity in it.")
    if array.size not in (1, batch):
        if batch % array.size:
            raise InputError(
                f"`guidance_scale` has {array.size} numbers for a batch of {batch} pictures.",
                hint="Pass one number, or one per picture.",
            )
        array = np.repeat(array, batch // array.size)  # one per device
    return jnp.asarray(np.broadcast_to(array, (batch,)))


def _latent_shape(
    pipeline: Any, batch: int, size: tuple[int | None, int | None]
) -> tuple[int, int, int, int]:
    factor = pipeline.vae_scale_factor
    trained = pipeline.unet.config.sample_size
    if None in size and trained is None:
        raise InputError("The UNet has no default size.", hint="Pass `height` and `width`.")
    sides = [trained, trained] if isinstance(trained, int) else list(trained or (0, 0))
    height, width = image_size(
        *(side * factor if own is None else own for own, side in zip(size, sides, strict=True))
    )
    channels = pipeline.vae.config.latent_channels
    return batch, channels, height // factor, width // factor


def _latents(given: Any, shape: tuple[int, int, int, int]) -> Array | None:
    if given is None:
        return None
    array = jnp.asarray(given)
    array = array.reshape(-1, *array.shape[2:]) if array.ndim == 5 else array
    if array.shape != shape:
        raise InputError(f"Unexpected latents shape, got {array.shape}, expected {shape}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(
            f"`latents` has to be a floating-point array {shape} but is of type {array.dtype}."
        )
    if not bool(jnp.isfinite(array).all()):
        raise InputError("`latents` has NaN or infinity in it.")
    return array


def _keys(given: Any, devices: int | None) -> Array:
    """Keys with one axis before them: one for all, or one per device."""
    key = jnp.asarray(given)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and (key.dtype != jnp.uint32 or key.ndim == 0):
        raise InputError(
            f"`prng_seed` has to be a key but is {key.dtype} {key.shape}.",
            hint="jax.random.PRNGKey(seed)",
        )
    single = key.ndim == (0 if typed else 1)
    if single:
        return key[None]
    if devices is None or key.shape[0] != devices:
        raise InputError(
            f"`prng_seed` has {key.shape[0]} keys, but `prompt_ids` no axis of so many devices.",
            hint="Pass one key, or shard the prompts too.",
        )
    return key


def _params(params: Mapping[str, Any], devices: int | None) -> Mapping[str, Any]:
    """Parameters without an axis of devices."""
    if not isinstance(params, Mapping):
        raise InputError(
            f"`params` has to be a dictionary but is {type(params)}.",
            hint="pipeline, params = ...from_pretrained(...)",
        )
    missing = [name for name in NEEDED if name not in params]
    if missing:
        raise InputError(
            f"`params` lacks {', '.join(missing)}.",
            hint="Components that were passed to from_pretrained bring no parameters: add them.",
        )
    bias = params["unet"].get("conv_in.bias")
    if devices is not None and bias is not None and bias.ndim == 2:
        return {name: unreplicate(params[name]) for name in params if name != "scheduler"}
    return params
