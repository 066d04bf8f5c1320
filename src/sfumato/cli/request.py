"""What is to be drawn: the options, a picture to replay and the model's defaults, in one value.

Nothing here imports torch, so a mistake is told before anything slow begins.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.checkpoints.files import shown
from sfumato.checkpoints.jsonfile import read_json
from sfumato.checkpoints.metadata import MAX_SEED, Recipe
from sfumato.checkpoints.model_index import DEFAULTS_NAME
from sfumato.checkpoints.picture_files import read_recipe
from sfumato.cli.conditions import check_conditions, condition_of, defaults_of
from sfumato.cli.models import Model, find_model
from sfumato.cli.picture_options import check_pictures
from sfumato.cli.previewing import Preview
from sfumato.cli.prompting import add_loras, check_syntax, check_tags, lora_files
from sfumato.cli.saving import Saving
from sfumato.cli.steering import check_steering
from sfumato.diffusion.rng import DISPLAY_NAMES, RNG_NAMES, find_rng
from sfumato.errors import ConfigError, ImageError, InputError
from sfumato.pipelines.quality import find_quality
from sfumato.pipelines.sampler_names import (
    Sampler,
    Schedule,
    find_sampler,
    find_schedule,
)
from sfumato.text.prompt import A1111, LITERAL

#: Used where neither the options nor the model say anything.
BUILT_IN = {"steps": 20, "cfg_scale": 7.0, "rng": "cpu", "prompt_syntax": A1111}
#: Keys that a model's file of defaults may have.
DEFAULT_KEYS = (
    "steps", "cfg_scale", "sampler", "schedule", "width", "height", "negative_prompt", "clip_skip",
    "guidance_rescale",
)  # fmt: skip
MAX_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run of the command.

    Attributes:
        recipe: what to draw; None fields are left to the model. ``prompt`` is the first one.
        prompts: one or more texts, each drawn ``count`` times.
        loras: name to file of the LoRAs that tags in prompts may name.
        model: what to draw with.
        count: pictures for each prompt, with the seeds ``recipe.seed + 0, 1, ...``.
        device, threads: as in `sfumato.runtime.device`.
        saving: how to save memory.
        backend: what is to compute, as `sfumato.cli.backends` has it; None leaves the choice to
            that. A picture to replay has its own in the recipe.
        preview: where to show drawings on their way.
        expected_hash: of the model that drew the picture to replay.
    """

    recipe: Recipe
    prompts: tuple[str, ...]
    loras: Mapping[str, Path]
    model: Model
    count: int
    device: str
    threads: int | None
    saving: Saving
    backend: str | None
    preview: Preview | None
    expected_hash: str | None


def build_request(
    given: Mapping[str, Any],
    *,
    prompts: tuple[str, ...],
    loras: Sequence[str],
    lora_dir: Path | None,
    model: str | None,
    replay: Path | None,
    count: int,
    device: str,
    threads: int | None,
    backend: str | None = None,
    preview: Preview | None = None,
    quality: str | None = None,
) -> Request:
    """Put the layers together and check what can be checked without the model.

    Args:
        given: the recipe's fields that the options set; None stands for not set.
        prompts: the texts; empty takes that of the picture to replay.
        loras: adapters for all prompts, as ``"name:strength"``.
        lora_dir: where the adapters are that are named.
        model: see `find_model`.
        replay: a picture whose recipe comes before the model's defaults.
        backend: a name in `sfumato.cli.backends`; None leaves the choice to that.
        preview: where to show drawings on their way.
        quality: a name in `sfumato.pipelines.quality`, for the fields that ``given`` lacks.

    Raises:
        SfumatoError: see the message.
    """
    given = {key: value for key, value in given.items() if value is not None}
    _check(given, count)
    drawn = _recipe_to_replay(replay) if replay is not None else None
    if drawn is not None and not prompts:
        prompts = (drawn.prompt,)
    if not prompts and condition_of(given) is not None:
        prompts = ("",)
    found = find_model(model) if prompts or model is not None else None
    if not prompts and found is not None and found.textless:
        prompts = ("",)
    if not prompts or found is None:
        raise InputError("A prompt is needed.", hint='For example: sfumato "a red apple"')
    layers: dict[str, Any] = {**BUILT_IN, **defaults_of(given), **_model_defaults(found.path)}
    if drawn is not None:
        layers |= _to_replay(drawn)
        if drawn.semantic_map is not None:  # its size is that of the map
            layers |= {"width": None, "height": None}
    if quality is not None:
        layers |= find_quality(quality).recipe()
    layers |= given
    if not layers.get("variation_strength"):
        layers.pop("variation_seed", None)
    for name in ("seed", *(("variation_seed",) if layers.get("variation_strength") else ())):
        if layers.get(name, -1) == -1:
            layers[name] = secrets.randbelow(2**32)
    layers["rng"] = DISPLAY_NAMES[find_rng(layers["rng"])]
    if layers.get("seed_resize_from"):
        read_size(layers["seed_resize_from"])
    syntax = layers["prompt_syntax"]
    check_syntax(syntax)
    before = {name: Path(file) for name, file in layers.get("loras", {}).items()}
    files = {name: file for name, file in before.items() if file.is_file()} | lora_files(lora_dir)
    prompts = add_loras(prompts, loras, files, syntax)
    check_tags(prompts, files, syntax)
    check_pictures(layers)
    check_conditions(layers)
    check_steering(layers.get("guidance"))
    if layers.get("vae") is not None and not Path(layers["vae"]).exists():
        raise FileNotFoundError(2, "No such autoencoder", shown(Path(layers["vae"])))
    recipe = Recipe(**{**layers, "prompt": prompts[0]})
    _check(recipe, count)
    return Request(
        recipe=recipe,
        prompts=prompts,
        loras=files,
        model=found,
        count=count,
        device=device,
        threads=threads,
        saving=Saving.of(recipe),
        backend=backend,
        preview=preview,
        expected_hash=drawn.model_hash if drawn is not None else None,
    )


#: Fields of a recipe that another run can use.
_REPLAYED = frozenset(Recipe()) - {"prompt", "model", "model_hash", "rng", "version", "extra"}


def _to_replay(drawn: Recipe) -> dict[str, Any]:
    """The fields to draw a picture again with.

    A text without an entry for it means noise drawn on a card, as A1111's default is; our own
    pictures always say, but early ones took every prompt literally without saying so.
    """
    fields = {key: value for key, value in drawn.to_dict().items() if key in _REPLAYED}
    rng = (drawn.rng or "nvidia").lower()
    if rng in (*RNG_NAMES, "nv"):
        fields["rng"] = rng
    return {"prompt_syntax": LITERAL, "backend": "torch", **fields}


def _recipe_to_replay(path: Path) -> Recipe:
    recipe = read_recipe(path)
    if recipe is None:
        raise ImageError(f"{shown(path)} carries no recipe, so it cannot be replayed.")
    if recipe.steps is None and recipe.seed is None:
        raise ImageError(f"The text in {shown(path)} is no recipe.")
    return recipe


def _model_defaults(folder: Path) -> dict[str, Any]:
    path = folder / DEFAULTS_NAME
    if not path.exists():
        return {}
    values = read_json(path)
    unknown = sorted(set(values) - set(DEFAULT_KEYS))
    if unknown:
        raise ConfigError(
            f"{shown(path)}: unknown key {unknown[0][:80]!r}.", hint=f"Known: {DEFAULT_KEYS}."
        )
    Recipe(**values)  # checks types and ranges
    return values


def _check(values: Mapping[str, Any], count: int) -> None:
    """Raise `InputError` for what no model takes; ``values`` are a recipe's fields."""
    for name in ("width", "height"):
        side = values.get(name)
        if side is not None and (side % 8 or not 8 <= side <= MAX_SIDE):
            near = min(MAX_SIDE, max(8, round(side / 8) * 8))
            raise InputError(
                f"The {name} has to be a multiple of 8 from 8 to {MAX_SIDE}, not {side}.",
                hint=f"The nearest is {near}.",
            )
    if max(values.get("seed") or 0, values.get("variation_seed") or 0) + count - 1 > MAX_SEED:
        raise InputError(f"The last seed would be above {MAX_SEED}.")
    sampler = values.get("sampler")
    if sampler is not None and not sampler.endswith("Scheduler"):  # the model may know that class
        choose_sampler(sampler, values.get("schedule"))


def choose_sampler(name: str, schedule: str | None) -> tuple[Sampler, Schedule | None]:
    """The sampler and schedule by name; a schedule of its own comes before one in the name.

    Raises:
        InputError: when one is unknown, or they do not go together.
    """
    sampler, of_name = find_sampler(name)
    wanted = schedule or (of_name and of_name.name)
    return sampler, find_schedule(wanted, sampler) if wanted else None


def read_size(text: str) -> tuple[int, int]:
    """Width and height of ``"512x768"``.

    Raises:
        InputError: when it is something else.
    """
    sides = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if sides is None:
        raise InputError(f"A size looks like 512x768, not {text[:40]!r}.")
    return int(sides[1]), int(sides[2])
