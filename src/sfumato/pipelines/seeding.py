"""Seeds as arguments of a call, in place of generators."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from sfumato.diffusion.noise import NoiseSource, OneEach
from sfumato.diffusion.rng import find_rng
from sfumato.diffusion.seeds import Variation, read_seeds, seeded_noise
from sfumato.errors import InputError
from sfumato.pipelines import checks

#: Arguments of a call that speak of seeds.
SEED_KEYWORDS = (
    "seeds", "variation_seed", "variation_strength", "seed_resize_from", "rng",
    "eta_noise_seed_delta",
)  # fmt: skip


def read_generator(pipeline: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Turn a call's arguments about seeds into its ``generator``.

    One seed is for one picture; where there are more seeds than prompts, each prompt gets its share
    of pictures.

    Args:
        pipeline: whose call it is.
        given: the arguments, in which a value of None counts as not given.

    Returns:
        The arguments without those about seeds. Plain seeds become torch generators, as diffusers'
        users would make them, everything else a noise source.

    Raises:
        InputError: an argument is wrong, or contradicts another.
    """
    own = {name: given[name] for name in SEED_KEYWORDS if given.get(name) is not None}
    rest = {name: value for name, value in given.items() if name not in SEED_KEYWORDS}
    if not own:
        return rest
    seeds = read_seeds("seeds", own.get("seeds"))
    if seeds is None:
        raise InputError(f"`{next(iter(own))}` has a meaning only with `seeds`.")
    if rest.get("generator") is not None:
        raise InputError("Give either `seeds` or `generator`.")
    rest["num_images_per_prompt"] = _images(seeds, rest)
    variation = _variation(pipeline, own, len(seeds))
    rng = find_rng(own.get("rng", "cpu"))
    delta = checks.whole_number(
        "eta_noise_seed_delta", own.get("eta_noise_seed_delta", 0), 0, 2**64 - 1
    )
    if rng == "cpu" and variation == Variation() and not delta:
        rest["generator"] = OneEach(torch.Generator().manual_seed(seed) for seed in seeds)
    else:
        rest["generator"] = seeded_noise(seeds, rng, variation, delta)
    return rest


def _images(seeds: Sequence[int], given: dict[str, Any]) -> int:
    """Pictures for each prompt."""
    embeds = given.get("prompt_embeds")
    listed = given.get("prompt") if embeds is None else embeds
    prompts = max(1, len(listed)) if isinstance(listed, list | torch.Tensor) else 1
    most = checks.MAX_IMAGES_PER_PROMPT
    if "batch_size" in given:  # of pipelines that draw without a text
        prompts = checks.whole_number("batch_size", given["batch_size"], 1, most)
    images = checks.whole_number(
        "num_images_per_prompt", given.get("num_images_per_prompt", 1), 1, most
    )
    if images == 1 and len(seeds) % prompts == 0:
        return len(seeds) // prompts
    if len(seeds) != prompts * images:
        raise InputError(f"There are {len(seeds)} seeds for {prompts * images} pictures.")
    return images


def _variation(pipeline: Any, own: dict[str, Any], count: int) -> Variation:
    strength = checks.finite_number("variation_strength", own.get("variation_strength", 0), 0, 1)
    seeds = read_seeds("variation_seed", own.get("variation_seed")) or []
    if strength and not seeds:
        raise InputError("`variation_strength` needs a `variation_seed`.")
    size = own.get("seed_resize_from")
    if size is not None:
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise InputError("`seed_resize_from` has to be a height and a width in pixels.")
        height, width = checks.image_size(*size)
        size = height // pipeline.vae_scale_factor, width // pipeline.vae_scale_factor
    if not strength:
        return Variation(resize_from=size)
    seeds = seeds * count if len(seeds) == 1 else seeds
    return Variation(seeds=seeds, strength=strength, resize_from=size)


def check_scheduler(scheduler: Any, generator: Any) -> None:
    """Raise `InputError` for a scheduler of another library that cannot draw from a source."""
    if not isinstance(generator, NoiseSource) or type(scheduler).__module__.startswith("sfumato."):
        return
    if "generator" in inspect.signature(scheduler.step).parameters:
        name = type(scheduler).__name__
        raise InputError(
            f"{type(scheduler).__module__}.{name} draws from torch generators only.",
            hint="Use sfumato's scheduler of that name, or `seeds` alone, with rng='cpu'.",
        )
