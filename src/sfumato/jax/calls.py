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
from sfumato.jax.devices import is_replicated, make_mesh, unreplicate
from sfumato.pipelines.number_checks import finite_number, image_size, shown

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
    of_picture: bool = False,
) -> Call:
    """Check and unify; see `FlaxStableDiffusionPipeline.__call__`.

    Args:
        pipeline: that is called.
        prompt_ids, neg_prompt_ids, params, prng_seed, guidance_scale, latents: as it was given.
        size: height and width in pixels; None is the model's own.
        of_picture: whether the size is that of a given picture rather than the caller's wish.

    Raises:
        InputError: an argument is of the wrong shape or out of range.
    """
    for name in (*NEEDED, "tokenizer", "scheduler"):
        if getattr(pipeline, name) is None:
            raise InputError(f"The pipeline must have `{name}` for drawing.")
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
        negative = jnp.broadcast_to(pipeline.tokens([""], ids.shape[1]), ids.shape)
    else:
        negative = _ids("neg_prompt_ids", neg_prompt_ids, pipeline)
        negative = negative.reshape(-1, negative.shape[-1])
    if negative.shape != ids.shape:
        raise InputError(
            f"`neg_prompt_ids` and `prompt_ids` have to be of one shape but are {negative.shape}"
            f" and {ids.shape}.",
            hint="Prepare one negative prompt per prompt.",
        )
    shape = _latent_shape(pipeline, batch, size, of_picture)
    mesh = None if devices is None or devices == 1 else make_mesh(devices, local=True)
    return Call(
        ids=ids,
        negative_ids=negative,
        params=_params(params, devices, pipeline.safety_checker is not None),
        keys=_keys(prng_seed, devices),
        scale=_scale(guidance_scale, batch),
        latents=_latents(latents, shape),
        shape=shape,
        devices=devices,
        mesh=mesh,
    )


def _array(name: str, given: Any, wanted: str, hint: str = "") -> np.ndarray[Any, Any]:
    """``given`` as an array of numbers, or `InputError` that it has to be what is ``wanted``."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # such as lists of several lengths
        array = np.array(None)
    if array.dtype.kind not in "biufc" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"`{name}` has to be {wanted} but is {shown(given)}.", hint=hint)
    return array


def _ids(name: str, ids: Any, pipeline: Any) -> Array:
    wanted, hint = "integers (batch, length)", f"{name} = pipeline.prepare_inputs(['a cat'])"
    array = _array(name, ids, wanted, hint)
    if array.ndim not in (2, 3) or array.dtype.kind not in "iu" or 0 in array.shape:
        raise InputError(
            f"`{name}` has to be {wanted} but is {array.dtype} {array.shape}.", hint=hint
        )
    rows = pipeline.text_encoder.config.vocab_size
    if array.min() < 0 or array.max() >= rows:
        raise InputError(f"`{name}` has ids outside of 0..{rows - 1}, the text encoder's tokens.")
    return jnp.asarray(array.astype(np.int32))


def _scale(given: Any, batch: int) -> Array:
    """One scale per picture."""
    if not isinstance(given, list | tuple) and np.ndim(given) == 0:
        given = finite_number("guidance_scale", given)
    array = _array("guidance_scale", given, "a number, or one per picture,").reshape(-1)
    if array.dtype.kind in "bc":
        raise InputError(
            f"`guidance_scale` has to be real numbers but is of type {array.dtype}.",
            hint="Pass one number, or one per picture.",
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError("`guidance_scale` has NaN or infinity in it.")
    if array.size not in (1, batch):
        if array.size == 0 or batch % array.size:
            raise InputError(
                f"`guidance_scale` has {array.size} numbers for a batch of {batch} pictures.",
                hint="Pass one number, or one per picture.",
            )
        array = np.repeat(array, batch // array.size)  # one per device
    return jnp.asarray(np.broadcast_to(array, (batch,)))


def check_plain(pipeline: Any) -> None:
    """Raise `InputError` unless the UNet takes latents and nothing else."""
    taken, channels = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if taken != channels:
        raise InputError(
            f"The unet has {taken} input channels, but the vae makes latents of {channels}.",
            hint="Models for inpainting are for FlaxStableDiffusionInpaintPipeline.",
        )


def _latent_shape(
    pipeline: Any, batch: int, size: tuple[int | None, int | None], of_picture: bool
) -> tuple[int, int, int, int]:
    factor = pipeline.vae_scale_factor
    trained = pipeline.unet.config.sample_size
    if None in size and trained is None:
        raise InputError("The UNet has no default size.", hint="Pass `height` and `width`.")
    sides = [trained, trained] if isinstance(trained, int) else list(trained or (0, 0))
    height, width = (
        side * factor if own is None else own for own, side in zip(size, sides, strict=True)
    )
    if not of_picture:
        height, width = image_size(height, width)
    elif height % factor or width % factor or not height or not width:
        raise InputError(
            f"The sides of a picture have to be divisible by {factor} but are {height} and {width}."
        )
    channels = pipeline.vae.config.latent_channels
    return batch, channels, height // factor, width // factor


def _latents(given: Any, shape: tuple[int, int, int, int]) -> Array | None:
    if given is None:
        return None
    wanted = f"a floating-point array {shape}"
    array = given if isinstance(given, Array) else _array("latents", given, wanted)
    array = array.reshape(-1, *array.shape[2:]) if array.ndim == 5 else array
    if array.shape != shape:
        raise InputError(f"Unexpected latents shape, got {array.shape}, expected {shape}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"`latents` has to be {wanted} but is of type {array.dtype}.")
    if not bool(jnp.isfinite(array).all()):
        raise InputError("`latents` has NaN or infinity in it.")
    return jnp.asarray(array)


def _keys(given: Any, devices: int | None) -> Array:
    """Keys with one axis before them: one for all, or one per device."""
    hint = "jax.random.PRNGKey(seed)"
    key = given if isinstance(given, Array) else _array("prng_seed", given, "a key", hint)
    key = jnp.asarray(key)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    own = () if typed else jax.random.PRNGKey(0).shape
    axes = key.ndim - len(own)
    fits = axes in (0, 1) and key.shape[axes:] == own
    if not fits or not (typed or key.dtype == jnp.uint32):
        raise InputError(f"`prng_seed` has to be a key but is {key.dtype} {key.shape}.", hint=hint)
    if axes == 0:
        return key[None]
    if devices is None or key.shape[0] != devices:
        raise InputError(
            f"`prng_seed` has {key.shape[0]} keys, but `prompt_ids` no axis of so many devices.",
            hint="Pass one key, or shard the prompts too.",
        )
    return key


def _params(params: Any, devices: int | None, judged: bool) -> Mapping[str, Any]:
    """Parameters without an axis of devices; with those of a safety checker, if ``judged``."""
    if not isinstance(params, Mapping):
        raise InputError(
            f"`params` has to be a dictionary but is {type(params)}.",
            hint="pipeline, params = ...from_pretrained(...)",
        )
    needed = (*NEEDED, "safety_checker") if judged else NEEDED
    missing = [name for name in needed if name not in params]
    if missing:
        raise InputError(
            f"`params` lacks {', '.join(missing)}.",
            hint="Components that were passed to from_pretrained bring no parameters: add them.",
        )
    for name in needed:
        if not isinstance(params[name], Mapping):
            raise InputError(
                f"`params['{name}']` has to be a dictionary but is {type(params[name])}.",
                hint="pipeline, params = ...from_pretrained(...)",
            )
    if not is_replicated(params):
        return params
    if devices is None:
        raise InputError(
            "`params` has an axis of devices, but `prompt_ids` has none.",
            hint="Shard the prompts too, or pass the parameters as they were loaded.",
        )
    return {name: unreplicate(params[name]) for name in params if name != "scheduler"}
