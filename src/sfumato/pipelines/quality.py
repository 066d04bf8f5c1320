"""Presets between speed and quality: a sampler, a schedule and a number of steps.

They were chosen from the curves that `python -m benchmarks.quality` measures (docs/speed.md): of
all samplers without fresh noise the one that comes nearest to the converged picture in so many
calls of the network. "balanced" is no farther from it than the 50 steps of PNDM that diffusers
takes by default. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sfumato.errors import InputError, did_you_mean
from sfumato.pipelines.sampler_names import find_sampler, find_schedule, scheduler_for


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A preset.

    Attributes:
        name: what people call it.
        sampler, schedule: names in `sfumato.pipelines.sampler_names`.
        steps: as many calls of the network.
    """

    name: str
    sampler: str
    schedule: str
    steps: int

    def recipe(self) -> dict[str, Any]:
        """The fields of a picture's recipe that it sets."""
        return {"sampler": self.sampler, "schedule": self.schedule, "steps": self.steps}


QUALITIES = {
    quality.name: quality
    for quality in (
        Quality(name="fast", sampler="DEIS", schedule="Uniform", steps=8),
        Quality(name="balanced", sampler="LMS", schedule="Karras", steps=14),
        Quality(name="best", sampler="UniPC", schedule="Karras", steps=30),
    )
}


def find_quality(name: str) -> Quality:
    """The preset of that name.

    Raises:
        InputError: there is none.

    >>> find_quality("balanced").steps
    14
    """
    if name not in QUALITIES:
        raise InputError(
            f"There is no quality {name[:80]!r}; it is one of {', '.join(QUALITIES)}."
            f"{did_you_mean(name, QUALITIES)}"
        )
    return QUALITIES[name]


def use_quality(pipeline: Any, name: str) -> dict[str, Any]:
    """Give a pipeline the scheduler of a preset.

    Args:
        pipeline: whose ``scheduler`` is replaced by one with the same noise.
        name: ``"fast"``, ``"balanced"`` or ``"best"``.

    Returns:
        Arguments for the pipeline's call: ``pipe("a cat", **use_quality(pipe, "fast"))``.

    Raises:
        InputError: there is no such preset.
    """
    from sfumato import schedulers

    quality = find_quality(name)
    sampler = find_sampler(quality.sampler)[0]
    class_name, options = scheduler_for(sampler, find_schedule(quality.schedule, sampler))
    scheduler_class = getattr(schedulers, class_name)
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **options)
    return {"num_inference_steps": quality.steps}
