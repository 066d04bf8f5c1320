"""The names that people know samplers by, and the scheduler class each of them means.

A1111, ComfyUI, stable-diffusion.cpp and diffusers call the same methods differently; the tables
below are all there is to it. Names compare without case, spaces, ``-`` and ``_``, and ``++`` is
``pp``, so ``DPM++ 2M``, ``dpmpp_2m`` and ``dpm++2m`` are one name. A name may end in a schedule,
as in ``DPM++ 2M Karras``. This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sfumato.errors import InputError, did_you_mean

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
#: Schedules that change which time steps are visited; every sampler below has them.
_SPACINGS = ("Uniform", "SGM Uniform", "Leading")
_SIGMAS = ("Karras", "Exponential", "Beta", *_SPACINGS)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One sampling method.

    Attributes:
        name: as A1111 displays it, and as it is written into pictures.
        class_name: diffusers' scheduler class.
        aliases: other programs' names.
        options: configuration that makes the class this method.
        schedules: names in `SCHEDULES` that the class can follow.
        about: one line for a person who chooses.
    """

    name: str
    class_name: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: _NO_OPTIONS)
    schedules: tuple[str, ...] = _SPACINGS
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One way to spread the steps over the noise levels; fields as in `Sampler`."""

    name: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any]


SAMPLERS: tuple[Sampler, ...] = (
    Sampler(
        name="Euler",
        class_name="EulerDiscreteScheduler",
        aliases=("k_euler",),
        schedules=_SIGMAS,
        about="simple and dependable, 20 to 30 steps",
    ),
    Sampler(
        name="Euler a",
        class_name="EulerAncestralDiscreteScheduler",
        aliases=("euler_ancestral", "k_euler_a", "k_euler_ancestral"),
        about="adds noise in every step; the picture changes with the number of steps",
    ),
    Sampler(
        name="DPM++ 2M",
        class_name="DPMSolverMultistepScheduler",
        aliases=("k_dpmpp_2m",),
        options={"algorithm_type": "dpmsolver++", "solver_order": 2},
        schedules=_SIGMAS,
        about="the best pictures in few steps, 10 to 25; often with Karras",
    ),
    Sampler(
        name="UniPC",
        class_name="UniPCMultistepScheduler",
        aliases=("uni_pc",),
        schedules=_SIGMAS,
        about="good pictures in very few steps, 8 to 15",
    ),
    Sampler(
        name="PLMS",
        class_name="PNDMScheduler",
        aliases=("pndm",),
        options={"skip_prk_steps": True},
        about="the first default of Stable Diffusion, 50 steps",
    ),
    Sampler(
        name="DDIM",
        class_name="DDIMScheduler",
        about="the classic; --eta adds noise",
    ),
    Sampler(
        name="DDPM",
        class_name="DDPMScheduler",
        about="the original process, for many steps",
    ),
    Sampler(
        name="LCM",
        class_name="LCMScheduler",
        about="2 to 8 steps, for models distilled for it",
    ),
    Sampler(
        name="TCD",
        class_name="TCDScheduler",
        about="1 to 8 steps, for models distilled for it; --eta 0.3 adds noise",
    ),
)

SCHEDULES: tuple[Schedule, ...] = (
    Schedule(name="Karras", options={"use_karras_sigmas": True}),
    Schedule(name="Exponential", options={"use_exponential_sigmas": True}),
    Schedule(name="Beta", options={"use_beta_sigmas": True}),
    Schedule(
        name="Uniform",
        aliases=("normal", "linspace", "discrete"),
        options={"timestep_spacing": "linspace"},
    ),
    Schedule(
        name="SGM Uniform",
        aliases=("trailing", "simple"),
        options={"timestep_spacing": "trailing"},
    ),
    Schedule(name="Leading", aliases=("ddim_uniform",), options={"timestep_spacing": "leading"}),
)
#: Names that leave the model's own schedule as it is.
AUTOMATIC = ("automatic", "default", "auto")
_SIGMA_SWITCHES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def normalized(name: str) -> str:
    """The form in which names are compared.

    >>> normalized("DPM++ 2M"), normalized("dpmpp_2m")
    ('dpmpp2m', 'dpmpp2m')
    """
    text = name.casefold().replace("++", "pp")
    return "".join(c for c in text if c not in " -_\t")


def _sampler_names() -> dict[str, Sampler]:
    return {
        normalized(name): sampler
        for sampler in SAMPLERS
        for name in (sampler.name, sampler.class_name, *sampler.aliases)
    }


def _schedule_names() -> dict[str, Schedule]:
    return {normalized(n): schedule for schedule in SCHEDULES for n in _all_names(schedule)}


def _all_names(schedule: Schedule) -> tuple[str, ...]:
    return (schedule.name, *schedule.aliases)


def find_sampler(name: str) -> tuple[Sampler, Schedule | None]:
    """The sampler with this name in any program, and the schedule if the name ends in one.

    Raises:
        InputError: when there is no such sampler; names the closest.

    >>> sampler, schedule = find_sampler("DPM++ 2M Karras")
    >>> sampler.class_name, schedule.name
    ('DPMSolverMultistepScheduler', 'Karras')
    """
    names, wanted = _sampler_names(), normalized(name[:100])
    if wanted in names:
        return names[wanted], None
    for ending, schedule in _schedule_names().items():
        if wanted.endswith(ending) and wanted.removesuffix(ending) in names:
            return names[wanted.removesuffix(ending)], schedule
    shown = [name for s in SAMPLERS for name in (s.name, s.class_name, *s.aliases)]
    raise InputError(
        f"There is no sampler {name[:60]!r}.{did_you_mean(name[:60], shown)}",
        hint=f"Known are {', '.join(sampler.name for sampler in SAMPLERS)}.",
    )


def find_schedule(name: str, sampler: Sampler) -> Schedule | None:
    """The schedule with this name; None for those of `AUTOMATIC`.

    Raises:
        InputError: when there is none, or the sampler cannot follow it.
    """
    wanted = normalized(name[:100])
    if wanted in AUTOMATIC:
        return None
    schedule = _schedule_names().get(wanted)
    if schedule is None:
        shown = [n for s in SCHEDULES for n in _all_names(s)]
        raise InputError(
            f"There is no schedule {name[:60]!r}.{did_you_mean(name[:60], shown)}",
            hint=f"{sampler.name} knows {', '.join(('Automatic', *sampler.schedules))}.",
        )
    if schedule.name not in sampler.schedules:
        raise InputError(
            f"The sampler {sampler.name} has no schedule {schedule.name}.",
            hint=f"It knows {', '.join(('Automatic', *sampler.schedules))}.",
        )
    return schedule


def options_for(sampler: Sampler, schedule: Schedule | None) -> dict[str, Any]:
    """The configuration to change in a model's scheduler, for ``from_config(config, **options)``.

    A schedule switches off the others; no schedule leaves the model's own.
    """
    options: dict[str, Any] = dict(sampler.options)
    if schedule is not None:
        if "Karras" in sampler.schedules:
            options |= dict.fromkeys(_SIGMA_SWITCHES, False)
        options |= schedule.options
    return options


def names_of(class_name: str, config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The display names of a scheduler and of its schedule, if it has one of the sigma schedules.

    A scheduler that is none of the table goes by the name of its class.
    """
    for sampler in SAMPLERS:
        matches = all(config.get(key) == value for key, value in sampler.options.items())
        if sampler.class_name == class_name and matches:
            break
    else:
        return class_name, None
    for schedule in SCHEDULES:
        switches = [key for key in schedule.options if key in _SIGMA_SWITCHES]
        if switches and all(config.get(key) for key in switches):
            return sampler.name, schedule.name
    return sampler.name, None
