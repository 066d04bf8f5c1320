"""From a request to pictures with torch: the part of the command that computes.

Pictures are drawn one at a time, each from a generator with its own seed, so every picture can be
drawn again alone, bit for bit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import sfumato
from sfumato import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from sfumato.checkpoints.classes import find_class
from sfumato.checkpoints.files import shown
from sfumato.checkpoints.metadata import Recipe
from sfumato.checkpoints.places import read_config
from sfumato.checkpoints.recognise import recognise
from sfumato.checkpoints.source import open_source, shapes_of
from sfumato.cli.condition_drawing import draw_condition, draws_conditions, refuse_conditions
from sfumato.cli.console import is_terminal
from sfumato.cli.drawn import Drawn, each_picture, model_hash_of, resize_from, stamped
from sfumato.cli.models import TEXTLESS, Model
from sfumato.cli.picture_drawing import draw_recipe
from sfumato.cli.request import Request
from sfumato.cli.saving import Saving
from sfumato.cli.steering import guidance_parts
from sfumato.errors import InputError
from sfumato.runtime.device import pick_device, pick_dtype, set_threads
from sfumato.runtime.policy import dtype_for_size, network_size

if TYPE_CHECKING:
    from PIL.Image import Image


def draw(request: Request) -> Iterator[Drawn]:
    """Load the model, then yield each picture as soon as it is there.

    Raises:
        SfumatoError: when the model cannot be loaded, is not the one that drew the picture to
            replay, or does not take the request.
    """
    device = pick_device(request.device)
    set_threads(request.threads)
    model_hash = model_hash_of(request)
    dtype = request.recipe.dtype or "auto"
    pipe = _load(request.model, dtype, device, request.saving)
    if request.recipe.vae is not None:
        waits = request.saving.waits_in_files(device)
        pipe.vae = load_vae(Path(request.recipe.vae), pipe.vae, offload_state_dict=waits)
    request.saving.place(pipe, device)
    recipe = stamped(request, pipe, "torch", str(pipe.unet.dtype).removeprefix("torch."))
    recipe = recipe.replace(model_hash=model_hash)
    shows = None if request.preview is None else request.preview.callback()
    for one, label in each_picture(request, recipe):
        more = {} if request.preview is None else {"callback_on_step_end": shows}
        yield _draw_one(pipe, one, request.loras, label, more)


def _load(model: Model, dtype: str, device: torch.device, saving: Saving) -> Any:
    path = model.path
    chosen = dtype_for_size(network_size(path), device) if dtype == "auto" else None
    options: dict[str, Any] = {
        "torch_dtype": chosen or pick_dtype(dtype, device),
        "offload_state_dict": saving.waits_in_files(device),
    }
    if saving.quantization is not None:
        options["quantization"] = saving.quantization
    kind: Any = StableDiffusionPipeline
    if model.pipeline in (*TEXTLESS, "LDMTextToImagePipeline"):
        kind = getattr(sfumato, model.pipeline)
    load = kind.from_single_file if path.is_file() else kind.from_pretrained
    pipe = load(path, **options)
    pipe.latents_dtype = torch.float32  # the same seed draws the same picture in any precision
    return pipe


def load_vae(path: Path, own: Any, **options: Any) -> Any:
    """An autoencoder in place of a model's own, from a folder, or a file with it among others.

    ``options`` are those of its ``from_pretrained`` and ``from_single_file``.

    Raises:
        SfumatoError: there is none, or it is for latents of another kind.
    """
    if path.is_dir():
        config = read_config(path, "config.json", path)
        kind = find_class(str(config.get("_class_name", "AutoencoderKL")), shown(path))
        loaded = kind.from_pretrained(path, torch_dtype=own.dtype, **options)
    else:
        found = recognise(shapes_of(open_source(path)))
        tiny = found is not None and found.name == "tiny autoencoder"
        kind = AutoencoderTiny if tiny else AutoencoderKL
        loaded = kind.from_single_file(path, torch_dtype=own.dtype, **options)
    kinds = [
        (getattr(vae.config, "latent_channels", None), len(vae.config.block_out_channels))
        for vae in (own, loaded)
    ]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"The autoencoder {shown(path)} has latents of {kinds[1][0]} channels and"
            f" {kinds[1][1]} sizes, the model's own {kinds[0][0]} and {kinds[0][1]}.",
            hint="Autoencoders go with the models whose latents they were trained for.",
        )
    return loaded


def _draw_one(
    pipe: StableDiffusionPipeline,
    recipe: Recipe,
    loras: Mapping[str, Path],
    label: str | None,
    more: Mapping[str, Any],
) -> Drawn:
    pipe.set_progress_bar_config(disable=not is_terminal(sys.stderr), desc=label, leave=False)
    start = time.perf_counter()
    drawing = draw_condition if draws_conditions(pipe) else _draw_text
    result: Any = drawing(
        pipe,
        recipe,
        num_inference_steps=recipe.steps or 1,
        guidance_scale=recipe.cfg_scale or 0.0,
        negative_prompt=recipe.negative_prompt or None,
        eta=recipe.eta or 0.0,
        seeds=recipe.seed or 0,
        variation_seed=recipe.variation_seed,
        variation_strength=recipe.variation_strength,
        seed_resize_from=resize_from(recipe),
        rng=recipe.rng,
        prompt_syntax=recipe.prompt_syntax,
        loras=dict(loras),
        clip_skip=(recipe.clip_skip or 1) - 1 or None,
        guidance_rescale=recipe.guidance_rescale or 0.0,
        guidance=guidance_parts(recipe.guidance) or None,
        eta_noise_seed_delta=recipe.eta_noise_seed_delta,
        **more,
    )
    image: Image = result.images[0]
    seconds = time.perf_counter() - start
    return Drawn(
        image=image, recipe=recipe.replace(width=image.width, height=image.height), seconds=seconds
    )


def _draw_text(pipe: StableDiffusionPipeline, recipe: Recipe, **call: Any) -> Any:
    refuse_conditions(recipe)
    return draw_recipe(pipe, recipe, **call)
