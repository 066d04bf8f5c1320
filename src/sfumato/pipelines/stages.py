"""The stations of a call between the prompt and the picture, as functions.

A pipeline's methods of diffusers' names are one-line callers of these.
"""

from __future__ import annotations

import copy
import inspect
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.adapters.state import scaled
from sfumato.diffusion.noise import Generators, NoiseSource, randn_tensor
from sfumato.errors import InputError, NumericalError
from sfumato.runtime.allocator import returning_memory

#: Latents of a picture of 512x512: from there on, decoding them decides how much memory it takes.
_LARGE = 4 * 64 * 64


def retrieve_timesteps(
    scheduler: Any,
    num_inference_steps: int | None = None,
    device: str | torch.device | None = None,
    timesteps: Sequence[int] | Tensor | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, int]:
    """Set a scheduler's timesteps, by number or by hand.

    Args:
        scheduler: anything with ``set_timesteps`` and ``timesteps``.
        num_inference_steps: how many; not used with ``timesteps`` or ``sigmas``.
        device: where the timesteps shall be.
        timesteps: the timesteps themselves, descending.
        sigmas: or the noise levels themselves, descending.
        kwargs: further arguments of ``set_timesteps``.

    Returns:
        The timesteps at which the network is called, and the number of steps.

    Raises:
        InputError: when both are given, or the scheduler does not take what is given.
    """
    if timesteps is not None and sigmas is not None:
        raise InputError(
            "Only one of `timesteps` or `sigmas` can be passed. Please choose one to set custom"
            " values"
        )
    if timesteps is None and sigmas is None:
        scheduler.set_timesteps(num_inference_steps, device=device, **kwargs)
        assert num_inference_steps is not None
        return scheduler.timesteps, num_inference_steps
    name, values = ("timesteps", timesteps) if timesteps is not None else ("sigmas", sigmas)
    if name not in inspect.signature(scheduler.set_timesteps).parameters:
        kind = "timestep" if name == "timesteps" else name
        raise InputError(
            f"The current scheduler class {type(scheduler)}'s `set_timesteps` does not support"
            f" custom {kind} schedules. Please check whether you are using the correct scheduler."
        )
    scheduler.set_timesteps(device=device, **{name: values}, **kwargs)
    return scheduler.timesteps, len(scheduler.timesteps)


def last_timesteps(scheduler: Any, steps: int, strength: float) -> tuple[Tensor, int]:
    """The timesteps that are left when a given picture is to be changed only in part.

    Args:
        scheduler: after ``set_timesteps``; told where to begin, if it wants to know.
        steps: how many steps there are.
        strength: the share of them to take, 0..1.

    Returns:
        The timesteps, and the number of steps that they are; there may be none. PNDM has a call
        more than steps, which is left even then, as in diffusers.
    """
    taken = min(int(steps * strength), steps)
    start = max(steps - taken, 0) * getattr(scheduler, "order", 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler.timesteps[start:], taken


def private_copy(scheduler: Any) -> Any:
    """A scheduler with state of its own.

    Tables of tensors, which no step changes, stay shared; lists, which steps write into, do not.
    """
    twin = copy.copy(scheduler)
    for name, value in vars(twin).items():
        if isinstance(value, list):
            setattr(twin, name, list(value))
    return twin


_stepping: set[int] = set()
_stepping_lock = threading.Lock()


@contextmanager
def borrow(scheduler: Any) -> Iterator[Any]:
    """The scheduler for one call: itself, or a copy while another call is stepping it.

    Schedulers of diffusers' kind count steps and remember the network's outputs, so two running
    calls may not share one. The first takes the original, because callbacks look at it.
    """
    with _stepping_lock:
        free = id(scheduler) not in _stepping
        _stepping.add(id(scheduler))
    try:
        yield scheduler if free else private_copy(scheduler)
    finally:
        if free:
            with _stepping_lock:
                _stepping.discard(id(scheduler))


def prepare_latents(
    scheduler: Any,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str,
    generator: Generators,
    latents: Tensor | None = None,
) -> Tensor:
    """Noise of the strength that the scheduler begins with, or the given latents at that strength.

    This is the first draw from the generators.
    """
    if latents is None:
        latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    else:
        latents = latents.to(device, dtype)
    return latents * scheduler.init_noise_sigma


def guidance_scale_embedding(
    w: Tensor, embedding_dim: int = 512, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The guidance scale as waves, for distilled networks (arXiv:2310.04378, section 4.2).

    Args:
        w: guidance scales minus 1, ``(n,)``.
        embedding_dim: width of the result.
        dtype: of the result.

    Returns:
        ``(n, embedding_dim)``: sines, then cosines, then a zero if the width is odd.
    """
    if w.ndim != 1:
        raise InputError(f"`w` has to have one axis but has the shape {tuple(w.shape)}.")
    half = embedding_dim // 2
    rate = math.log(10_000.0) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=dtype) * -rate)
    phases = (w * 1000.0).to(dtype)[:, None] * frequencies[None, :]
    waves = torch.cat([phases.sin(), phases.cos()], dim=1)
    return nn.functional.pad(waves, (0, embedding_dim % 2))


def encode(
    vae: Any,
    image: Tensor,
    generator: Generators = None,
    rows: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Images ``(batch, 3, height, width)`` around -1..1 to latents, as the UNet knows them.

    Args:
        vae: autoencoder; one with a distribution of latents draws from it.
        image: the images.
        generator: one for the batch, or a list from which each result takes its own. A noise
            source is kept for the noise: the most likely latents are taken then.
        rows: how many results; the images take turns. By default one for each.
        device, dtype: of the result.
    """
    output = vae.encode(image.to(device, vae.dtype))
    if hasattr(output, "latent_dist"):
        latents = _sample(output.latent_dist, generator, rows or len(image))
    else:
        latents = output.latents
    return (latents if dtype is None else latents.to(dtype)) * vae.config.scaling_factor


def most_likely(vae: Any, image: Tensor, dtype: torch.dtype) -> Tensor:
    """Images to latents without any draw, and without scaling them for the UNet."""
    output = vae.encode(image.to(vae.dtype))
    latents = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents
    return latents.to(dtype)


def _sample(distribution: Any, generator: Generators, rows: int) -> Tensor:
    if isinstance(generator, NoiseSource):
        return distribution.mode()
    if generator is None or isinstance(generator, torch.Generator):
        return distribution.sample(generator)
    each = distribution.parameters.split(1)
    draws = [
        type(distribution)(each[row % len(each)]).sample(own)
        for row, own in zip(range(rows), generator, strict=False)
    ]
    return torch.cat(draws)


def decode(vae: Any, latents: Tensor, generator: Generators = None) -> Tensor:
    """Latents to images ``(batch, 3, height, width)`` around -1..1.

    Raises:
        NumericalError: when the autoencoder makes NaN or infinity of finite latents.
    """
    scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
    large = latents.device.type == "cpu" and latents.numel() >= _LARGE
    with returning_memory() if large else nullcontext():
        image = vae.decode(scaled, return_dict=False, generator=generator)[0]
    if not torch.isfinite(image).all():
        raise NumericalError(
            "NaN or infinity in the picture: the autoencoder (`vae`) overflowed.",
            hint="In float16 some autoencoders do: pipe.vae.to(torch.float32), or bfloat16.",
        )
    return image


def check_safety(
    checker: Any,
    feature_extractor: Any,
    pictures: Any,
    image: Any,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Any, list[bool] | None]:
    """Ask a safety checker, if there is one.

    Args:
        checker: ``(images=..., clip_input=...) -> (images, flags)``, or None.
        feature_extractor: makes the checker's input of PIL pictures.
        pictures: PIL pictures.
        image: the same as the tensor or array that the checker may blacken.
        device: where the checker is.
        dtype: its precision.

    Returns:
        The images, and for each whether the checker objects; None when nothing was checked.
    """
    if checker is None:
        return image, None
    features = feature_extractor(pictures, return_tensors="pt").to(device)
    image, flags = checker(images=image, clip_input=features.pixel_values.to(dtype))
    return image, [bool(flag) for flag in flags]


@contextmanager
def adapter_scale(network: Any, scale: float | None) -> Iterator[None]:
    """Weaken or strengthen a network's adapters for a while, those of the peft library too."""
    layers: list[Any] = (
        [m for m in network.modules() if hasattr(m, "scale_layer") and hasattr(m, "scaling")]
        if scale is not None and isinstance(network, nn.Module)
        else []
    )
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scale_layer(scale)
    try:
        with scaled(network, scale):
            yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
