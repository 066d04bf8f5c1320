"""From a request to pictures: the part of the command that computes.

Pictures are drawn one at a time, each from a generator with its own seed, so every picture can be
drawn again alone, bit for bit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import sfumato
from sfumato import StableDiffusionPipeline, __version__
from sfumato.assets import MANIFEST, file_sha256, read_manifest, verify_manifest
from sfumato.checkpoints.file_hashes import hash_file
from sfumato.checkpoints.files import is_regular, shown
from sfumato.checkpoints.metadata import Recipe
from sfumato.cli.condition_drawing import draw_condition, draws_conditions, refuse_conditions
from sfumato.cli.console import is_terminal, note
from sfumato.cli.models import TEXTLESS, Model
from sfumato.cli.picture_drawing import draw_recipe
from sfumato.cli.request import Request, choose_sampler, read_size
from sfumato.errors import CheckpointError
from sfumato.pipelines.sampler_names import AUTOMATIC, names_of, normalized, scheduler_for
from sfumato.runtime.device import pick_device, pick_dtype, set_threads
from sfumato.runtime.policy import dtype_for_size, network_size
from sfumato.text.prompt.tags import take_tags

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One finished picture, how it came about, and how long it took."""

    image: Image
    recipe: Recipe
    seconds: float


def draw(request: Request) -> Iterator[Drawn]:
    """Load the model, then yield each picture as soon as it is there.

    Raises:
        SfumatoError: when the model cannot be loaded, is not the one that drew the picture to
            replay, or does not take the request.
    """
    device = pick_device(request.device)
    set_threads(request.threads)
    model_hash = _model_hash(request)
    pipe = _load(request.model, request.recipe.dtype or "auto", device)
    request.saving.place(pipe, device)
    recipe = _set_sampler(pipe, request.recipe).replace(
        dtype=str(pipe.unet.dtype).removeprefix("torch."),
        model=request.model.name,
        model_hash=model_hash,
        version=f"sfumato {__version__}",
        clip_skip=request.recipe.clip_skip or 1,
    )
    total = len(request.prompts) * request.count
    for index in range(total):
        prompt = request.prompts[index // request.count]
        label = f"{index + 1}/{total}" if total > 1 else None
        one = _with_seeds(recipe, index % request.count).replace(
            prompt=prompt, extra=_lora_hashes(prompt, request.loras)
        )
        yield _draw_one(pipe, one, request.loras, label)


def _lora_hashes(prompt: str, loras: Mapping[str, Path]) -> dict[str, str]:
    """The entry in a picture's text by which others find the LoRAs that it was drawn with."""
    names = dict.fromkeys(tag.name for tag in take_tags(prompt)[1]) if loras else {}
    hashes = {name: hash_file(loras[name]) for name in names if name in loras}
    listed = ", ".join(f"{name}: {found.weights or found.short}" for name, found in hashes.items())
    return {"Lora hashes": listed} if listed else {}


def _with_seeds(recipe: Recipe, index: int) -> Recipe:
    """The seeds of one of several pictures: they count up, or those of their variations do."""
    if recipe.variation_strength:
        return recipe.replace(variation_seed=(recipe.variation_seed or 0) + index)
    return recipe.replace(seed=(recipe.seed or 0) + index)


def _load(model: Model, dtype: str, device: torch.device) -> Any:
    path = model.path
    chosen = dtype_for_size(network_size(path), device) if dtype == "auto" else None
    options = {"torch_dtype": chosen or pick_dtype(dtype, device)}
    kind: Any = StableDiffusionPipeline
    if model.pipeline in (*TEXTLESS, "LDMTextToImagePipeline"):
        kind = getattr(sfumato, model.pipeline)
    load = kind.from_single_file if path.is_file() else kind.from_pretrained
    pipe = load(path, **options)
    pipe.latents_dtype = torch.float32  # the same seed draws the same picture in any precision
    return pipe


def _draw_one(
    pipe: StableDiffusionPipeline, recipe: Recipe, loras: Mapping[str, Path], label: str | None
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
        seed_resize_from=_resize_from(recipe),
        rng=recipe.rng,
        prompt_syntax=recipe.prompt_syntax,
        loras=dict(loras),
        clip_skip=(recipe.clip_skip or 1) - 1 or None,
        guidance_rescale=recipe.guidance_rescale or 0.0,
    )
    image: Image = result.images[0]
    seconds = time.perf_counter() - start
    return Drawn(
        image=image, recipe=recipe.replace(width=image.width, height=image.height), seconds=seconds
    )


def _draw_text(pipe: StableDiffusionPipeline, recipe: Recipe, **call: Any) -> Any:
    refuse_conditions(recipe)
    return draw_recipe(pipe, recipe, **call)


def _resize_from(recipe: Recipe) -> tuple[int, int] | None:
    if recipe.seed_resize_from is None:
        return None
    width, height = read_size(recipe.seed_resize_from)
    return height, width


def _set_sampler(pipe: StableDiffusionPipeline, recipe: Recipe) -> Recipe:
    """Give the pipeline the scheduler that is asked for; the recipe with its display names."""
    own = type(pipe.scheduler).__name__
    own_name, _ = names_of(own, pipe.scheduler.config)
    wanted, schedule = recipe.schedule, None
    if wanted is not None and normalized(wanted) in AUTOMATIC:
        wanted = None
    if recipe.sampler not in (None, own, own_name) or wanted is not None:
        sampler, schedule = choose_sampler(recipe.sampler or own_name, wanted)
        class_name, options = scheduler_for(sampler, schedule)
        scheduler_class = getattr(sfumato, class_name)
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **options)
    name, sigmas = names_of(type(pipe.scheduler).__name__, pipe.scheduler.config)
    return recipe.replace(
        sampler=name, schedule=schedule.name if schedule else sigmas or "Automatic"
    )


def _model_hash(request: Request) -> str | None:
    """The first ten digits of a SHA-256, as A1111 names models: of the one file, or the UNet's.

    The embedded model is checked against its manifest on the way.
    """
    path = request.model.path
    if path.is_file():
        found = file_sha256(path)
    elif is_regular(path / MANIFEST):
        check = verify_manifest if request.model.embedded else read_manifest
        hashes = check(path)
        found = next((h for name, h in hashes.items() if _is_unet(Path(name))), None)
    else:
        files = sorted(path.glob("unet/*"))
        found = next((file_sha256(file) for file in files if _is_unet(file)), None)
    short = found[:10] if found else None
    expected = request.expected_hash
    if expected is not None and short != expected:
        text = f"The picture was drawn with a model whose hash is {expected}"
        if request.model.embedded:
            raise CheckpointError(f"{text}.", hint="Give that model with --model.")
        note(f"sfumato: {text}; {shown(path)} has {short}.")
    return short


def _is_unet(path: Path) -> bool:
    return path.parent.name == "unet" and path.suffix in (".safetensors", ".bin")
