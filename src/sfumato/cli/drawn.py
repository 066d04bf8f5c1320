"""What all backends of the command share: one recipe for each picture, and what is written into it.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sfumato
from sfumato import __version__
from sfumato.assets import MANIFEST, file_sha256, read_manifest, verify_manifest
from sfumato.checkpoints.files import is_regular, shown
from sfumato.checkpoints.metadata import Recipe
from sfumato.cli.console import note
from sfumato.cli.request import Request, choose_sampler, read_size
from sfumato.errors import CheckpointError
from sfumato.pipelines.sampler_names import AUTOMATIC, names_of, normalized, scheduler_for
from sfumato.text.prompt.tags import take_tags

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One finished picture, how it came about, and how long it took."""

    image: Image
    recipe: Recipe
    seconds: float


def stamped(request: Request, holder: Any, backend: str, dtype: str) -> Recipe:
    """The recipe with all that is the same for every picture of a run, but the model's hash.

    Args:
        request: what is asked for.
        holder: has the model's ``scheduler``, and is given the one asked for.
        backend: what computes.
        dtype: in which precision.
    """
    return set_sampler(holder, request.recipe).replace(
        dtype=dtype,
        backend=backend,
        model=request.model.name,
        version=f"sfumato {__version__}",
        clip_skip=request.recipe.clip_skip or 1,
    )


def each_picture(request: Request, recipe: Recipe) -> Iterator[tuple[Recipe, str | None]]:
    """The recipe of each picture, with its prompt and seeds, and its number of several."""
    total = len(request.prompts) * request.count
    for index in range(total):
        prompt = request.prompts[index // request.count]
        label = f"{index + 1}/{total}" if total > 1 else None
        yield (
            with_seeds(recipe, index % request.count).replace(
                prompt=prompt,
                loras=_named(prompt, request.loras),
                extra=lora_hashes(prompt, request.loras),
            ),
            label,
        )


def _named(prompt: str, loras: Mapping[str, Path]) -> dict[str, str]:
    """Name to file of the LoRAs that tags of a prompt name."""
    names = dict.fromkeys(tag.name for tag in take_tags(prompt)[1]) if loras else {}
    return {name: str(loras[name]) for name in names if name in loras}


def lora_hashes(prompt: str, loras: Mapping[str, Path]) -> dict[str, str]:
    """The entry in a picture's text by which others find the LoRAs that it was drawn with."""
    named = _named(prompt, loras)
    if not named:
        return {}
    from sfumato.checkpoints.file_hashes import hash_file

    hashes = {name: hash_file(Path(file)) for name, file in named.items()}
    listed = ", ".join(f"{name}: {found.weights or found.short}" for name, found in hashes.items())
    return {"Lora hashes": listed} if listed else {}


def with_seeds(recipe: Recipe, index: int) -> Recipe:
    """The seeds of one of several pictures: they count up, or those of their variations do."""
    if recipe.variation_strength:
        return recipe.replace(variation_seed=(recipe.variation_seed or 0) + index)
    return recipe.replace(seed=(recipe.seed or 0) + index)


def resize_from(recipe: Recipe) -> tuple[int, int] | None:
    """Height and width of the picture whose noise to keep in the middle."""
    if recipe.seed_resize_from is None:
        return None
    width, height = read_size(recipe.seed_resize_from)
    return height, width


def set_sampler(holder: Any, recipe: Recipe) -> Recipe:
    """Give a pipeline the scheduler that is asked for; the recipe with its display names.

    ``holder`` is anything with a ``scheduler``.
    """
    own = type(holder.scheduler).__name__
    own_name, _ = names_of(own, holder.scheduler.config)
    wanted, schedule = recipe.schedule, None
    if wanted is not None and normalized(wanted) in AUTOMATIC:
        wanted = None
    if recipe.sampler not in (None, own, own_name) or wanted is not None:
        sampler, schedule = choose_sampler(recipe.sampler or own_name, wanted)
        class_name, options = scheduler_for(sampler, schedule)
        scheduler_class = getattr(sfumato, class_name)
        holder.scheduler = scheduler_class.from_config(holder.scheduler.config, **options)
    name, sigmas = names_of(type(holder.scheduler).__name__, holder.scheduler.config)
    return recipe.replace(
        sampler=name, schedule=schedule.name if schedule else sigmas or "Automatic"
    )


def model_hash_of(request: Request) -> str | None:
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
