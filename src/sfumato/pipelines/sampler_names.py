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

_NOTHING: Mapping[str, Any] = MappingProxyType({})
#: Schedules that a configuration of diffusers' classes can ask for: by spacing, and by sigmas.
_SPACINGS = ("Uniform", "SGM Uniform", "Leading")
_SIGMAS = ("Karras", "Exponential", "Beta", *_SPACINGS)
_PLUS = "with CFG++: the guided picture, but the negative prompt's noise; guidance of 0.5 to 2"
#: The class that has any sampler of k-diffusion with any schedule.
K_CLASS = "KDiffusionScheduler"


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One sampling method.

    Attributes:
        name: as A1111 displays it, and as it is written into pictures.
        class_name: the scheduler class.
        aliases: other programs' names.
        options: configuration that makes the class this method.
        settings: configuration besides, against defaults of the class that do not suit latents.
        own_schedules: names in `SCHEDULES` that the class can follow.
        k_name: k-diffusion's name of it; by that `K_CLASS` follows the other schedules.
        about: one line for a person who chooses.
    """

    name: str
    class_name: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    settings: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    own_schedules: tuple[str, ...] = ()
    k_name: str | None = None
    about: str = ""

    @property
    def schedules(self) -> tuple[str, ...]:
        """All schedules that it can follow, by name."""
        others = [s.name for s in SCHEDULES if self.k_name and s.k_name]
        return tuple(dict.fromkeys((*self.own_schedules, *others)))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One way to spread the steps over the noise levels.

    Attributes:
        name: as A1111 displays it.
        aliases: other programs' names.
        options: configuration of diffusers' classes that asks for it, if there is one.
        k_name: its name in `K_CLASS`, if it has one.
    """

    name: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    k_name: str | None = None


def _by_k_diffusion(name: str, k_name: str, schedule: str, about: str, *aliases: str) -> Sampler:
    """A sampler that diffusers has no class for, with the schedule that it is mostly used with."""
    options = {"sampler": k_name, "schedule": schedule}
    return Sampler(
        name=name,
        class_name=K_CLASS,
        aliases=(k_name, *aliases),
        options=options,
        k_name=k_name,
        about=about,
    )


SAMPLERS: tuple[Sampler, ...] = (
    Sampler(
        name="Euler",
        class_name="EulerDiscreteScheduler",
        aliases=("k_euler",),
        own_schedules=_SIGMAS,
        k_name="euler",
        about="simple and dependable, 20 to 30 steps",
    ),
    Sampler(
        name="Euler a",
        class_name="EulerAncestralDiscreteScheduler",
        aliases=("euler_ancestral", "k_euler_a", "k_euler_ancestral"),
        own_schedules=_SPACINGS,
        k_name="euler_ancestral",
        about="adds noise in every step; the picture changes with the number of steps",
    ),
    Sampler(
        name="DPM++ 2M",
        class_name="DPMSolverMultistepScheduler",
        aliases=("k_dpmpp_2m",),
        options={"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
        own_schedules=_SIGMAS,
        k_name="dpmpp_2m",
        about="the best pictures in few steps, 10 to 25; often with Karras",
    ),
    Sampler(
        name="DPM++ 2M SDE",
        class_name="DPMSolverMultistepScheduler",
        aliases=("k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
        options={"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
        own_schedules=_SIGMAS,
        k_name="dpmpp_2m_sde",
        about="the same with noise in every step, 20 to 40",
    ),
    Sampler(
        name="DPM++ 2M SDE Heun",
        class_name="DPMSolverMultistepScheduler",
        aliases=("dpmpp_2m_sde_heun_gpu",),
        options={"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "heun"},
        own_schedules=_SIGMAS,
        k_name="dpmpp_2m_sde_heun",
        about="the same with another second order",
    ),
    _by_k_diffusion(
        "DPM++ 3M SDE",
        "dpmpp_3m_sde",
        "exponential",
        "a third order, for 30 steps and more",
        "dpmpp_3m_sde_gpu",
        "k_dpmpp_3m_sde",
    ),
    Sampler(
        name="DPM++ SDE",
        class_name="DPMSolverSDEScheduler",
        aliases=("dpmpp_sde_gpu", "k_dpmpp_sde"),
        own_schedules=_SIGMAS,
        k_name="dpmpp_sde",
        about="two calls per step, with noise; good in 8 to 15 steps",
    ),
    _by_k_diffusion(
        "DPM++ 2S a",
        "dpmpp_2s_ancestral",
        "karras",
        "two calls per step, and noise at its end",
        "dpmpp_2s_a",
        "k_dpmpp_2s_a",
    ),
    Sampler(
        name="DPM++ 2S",
        class_name="DPMSolverSinglestepScheduler",
        aliases=("k_dpmpp_2s",),
        options={"algorithm_type": "dpmsolver++", "solver_order": 2},
        own_schedules=_SIGMAS[:3],
        about="calls two by two, each pair from one point",
    ),
    Sampler(
        name="UniPC",
        class_name="UniPCMultistepScheduler",
        aliases=("uni_pc",),
        options={"solver_type": "bh1"},
        own_schedules=_SIGMAS,
        about="good pictures in very few steps, 8 to 15",
    ),
    Sampler(
        name="UniPC bh2",
        class_name="UniPCMultistepScheduler",
        aliases=("uni_pc_bh2", "UniPCMultistepScheduler"),
        options={"solver_type": "bh2"},
        own_schedules=_SIGMAS,
        about="the same, as diffusers has it; better with guidance",
    ),
    Sampler(
        name="DEIS",
        class_name="DEISMultistepScheduler",
        own_schedules=_SIGMAS,
        about="good in few steps, 10 to 20",
    ),
    Sampler(
        name="SA-Solver",
        class_name="SASolverScheduler",
        own_schedules=_SIGMAS,
        about="predicts and corrects, with noise in the middle of the way; 20 steps and more",
    ),
    Sampler(
        name="Heun",
        class_name="HeunDiscreteScheduler",
        aliases=("k_heun",),
        own_schedules=_SIGMAS,
        k_name="heun",
        about="two calls per step, precise",
    ),
    Sampler(
        name="DPM2",
        class_name="KDPM2DiscreteScheduler",
        aliases=("k_dpm_2",),
        own_schedules=_SIGMAS,
        k_name="dpm_2",
        about="two calls per step, the second in the middle",
    ),
    Sampler(
        name="DPM2 a",
        class_name="KDPM2AncestralDiscreteScheduler",
        aliases=("dpm_2_ancestral", "k_dpm_2_a", "k_dpm_2_ancestral"),
        own_schedules=_SIGMAS,
        k_name="dpm_2_ancestral",
        about="the same, and noise at the end of every step",
    ),
    Sampler(
        name="LMS",
        class_name="LMSDiscreteScheduler",
        aliases=("k_lms",),
        own_schedules=_SIGMAS,
        k_name="lms",
        about="looks back on four steps; for many steps",
    ),
    Sampler(
        name="IPNDM",
        class_name=K_CLASS,
        options={"sampler": "ipndm", "schedule": "karras"},
        k_name="ipndm",
        about="looks back on four steps, evenly weighted",
    ),
    _by_k_diffusion(
        "IPNDM V", "ipndm_v", "karras", "looks back on four steps, weighted by their sizes"
    ),
    _by_k_diffusion("Heun++ 2", "heunpp2", "karras", "up to three calls per step, precise"),
    _by_k_diffusion(
        "RES multistep", "res_multistep", "karras", "looks back on one step; 15 to 30 steps"
    ),
    _by_k_diffusion(
        "RES multistep a",
        "res_multistep_ancestral",
        "karras",
        "the same, and noise at the end of every step",
    ),
    _by_k_diffusion(
        "Gradient estimation",
        "gradient_estimation",
        "karras",
        "Euler's slope led on from the last one; 15 to 30 steps",
    ),
    _by_k_diffusion(
        "DDIM CFG++",
        "ddim_cfg_pp",
        "ddim_uniform",
        "DDIM with CFG++; guidance of 0.5 to 2, which is A1111's divided by 12.5",
        "ddim_cfgpp",
    ),
    _by_k_diffusion("Euler CFG++", "euler_cfg_pp", "karras", _PLUS),
    _by_k_diffusion("Euler a CFG++", "euler_ancestral_cfg_pp", "karras", _PLUS),
    _by_k_diffusion("DPM++ 2M CFG++", "dpmpp_2m_cfg_pp", "karras", _PLUS),
    _by_k_diffusion("DPM++ 2S a CFG++", "dpmpp_2s_ancestral_cfg_pp", "karras", _PLUS),
    _by_k_diffusion("RES multistep CFG++", "res_multistep_cfg_pp", "karras", _PLUS),
    _by_k_diffusion("RES multistep a CFG++", "res_multistep_ancestral_cfg_pp", "karras", _PLUS),
    _by_k_diffusion("Gradient estimation CFG++", "gradient_estimation_cfg_pp", "karras", _PLUS),
    _by_k_diffusion("ER SDE", "er_sde", "karras", "looks back on two steps, with little noise"),
    Sampler(
        name="Restart",
        class_name=K_CLASS,
        options={"sampler": "restart", "schedule": "karras"},
        k_name="restart",
        about="goes back up on the way; two calls per step, 20 and more",
    ),
    Sampler(
        name="DPM fast",
        class_name=K_CLASS,
        aliases=("dpm_fast", "k_dpm_fast"),
        options={"sampler": "dpm_fast"},
        about="as many calls as steps, three by three; it has a schedule of its own",
    ),
    Sampler(
        name="DPM adaptive",
        class_name="DPMAdaptiveScheduler",
        aliases=("dpm_adaptive", "k_dpm_ad", "k_dpm_adaptive"),
        about="chooses its steps by itself, mostly 30 to 60 calls, whatever number is asked for",
    ),
    Sampler(
        name="PLMS",
        class_name="PNDMScheduler",
        aliases=("pndm",),
        options={"skip_prk_steps": True},
        own_schedules=_SPACINGS,
        about="the first default of Stable Diffusion, 50 steps",
    ),
    Sampler(
        name="DDIM",
        class_name="DDIMScheduler",
        settings={"clip_sample": False},
        own_schedules=_SPACINGS,
        about="the classic; --eta adds noise",
    ),
    Sampler(
        name="DDPM",
        class_name="DDPMScheduler",
        settings={"clip_sample": False},
        own_schedules=_SPACINGS,
        about="the original process, for many steps",
    ),
    Sampler(
        name="LCM",
        class_name="LCMScheduler",
        own_schedules=_SPACINGS,
        k_name="lcm",
        about="2 to 8 steps, for models distilled for it",
    ),
    Sampler(
        name="TCD",
        class_name="TCDScheduler",
        own_schedules=_SPACINGS,
        about="1 to 8 steps, for models distilled for it; --eta 0.3 adds noise",
    ),
)

SCHEDULES: tuple[Schedule, ...] = (
    Schedule(name="Karras", options={"use_karras_sigmas": True}, k_name="karras"),
    Schedule(name="Exponential", options={"use_exponential_sigmas": True}, k_name="exponential"),
    Schedule(name="Polyexponential", k_name="polyexponential"),
    Schedule(name="Beta", options={"use_beta_sigmas": True}, k_name="beta"),
    Schedule(name="KL Optimal", k_name="kl_optimal"),
    Schedule(name="Align Your Steps", aliases=("ays",), k_name="align_your_steps"),
    Schedule(
        name="Uniform",
        aliases=("normal", "linspace", "discrete"),
        options={"timestep_spacing": "linspace"},
        k_name="uniform",
    ),
    Schedule(
        name="SGM Uniform",
        aliases=("trailing", "turbo"),
        options={"timestep_spacing": "trailing"},
        k_name="sgm_uniform",
    ),
    Schedule(name="Simple", k_name="simple"),
    Schedule(
        name="Leading",
        aliases=("ddim", "ddim_uniform"),
        options={"timestep_spacing": "leading"},
        k_name="ddim_uniform",
    ),
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
    names = {normalized(n): sampler for sampler in SAMPLERS for n in _all_names(sampler)}
    for sampler in SAMPLERS:  # of several with one class, the class means the first
        if sampler.class_name != K_CLASS:
            names.setdefault(normalized(sampler.class_name), sampler)
    return names


def _schedule_names() -> dict[str, Schedule]:
    return {normalized(n): schedule for schedule in SCHEDULES for n in _all_names(schedule)}


def _all_names(row: Sampler | Schedule) -> tuple[str, ...]:
    return (row.name, *row.aliases)


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
    endings = {**_schedule_names(), "ka": _schedule_names()["karras"]}  # A1111: k_dpmpp_2m_ka
    for ending, schedule in endings.items():
        if wanted.endswith(ending) and wanted.removesuffix(ending) in names:
            return names[wanted.removesuffix(ending)], schedule
    shown = [name for s in SAMPLERS for name in (*_all_names(s), s.class_name)]
    raise InputError(
        f"There is no sampler {name[:60]!r}.{did_you_mean(name[:60], shown)}",
        hint=f"Known are {', '.join(s.name for s in SAMPLERS if 'CFG++' not in s.name)}; some have"
        " a form with CFG++.",
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


def scheduler_for(sampler: Sampler, schedule: Schedule | None) -> tuple[str, dict[str, Any]]:
    """The class of a sampler with a schedule, and what to change in a model's configuration.

    They are for ``from_config(pipe.scheduler.config, **options)``. A schedule switches off the
    others; no schedule leaves the model's own.

    >>> euler = find_sampler("Euler")[0]
    >>> scheduler_for(euler, find_schedule("AYS", euler))
    ('KDiffusionScheduler', {'sampler': 'euler', 'schedule': 'align_your_steps'})
    """
    if schedule is None:
        return sampler.class_name, {**sampler.options, **sampler.settings}
    if schedule.name not in sampler.own_schedules:
        return K_CLASS, {"sampler": sampler.k_name, "schedule": schedule.k_name}
    options: dict[str, Any] = {**sampler.options, **sampler.settings}
    if "Karras" in sampler.own_schedules:
        options |= dict.fromkeys(_SIGMA_SWITCHES, False)
    return sampler.class_name, {**options, **schedule.options}


def names_of(class_name: str, config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The display names of a scheduler and of its schedule, if it has one of the sigma schedules.

    A scheduler that is none of the table goes by the name of its class.
    """
    if class_name == K_CLASS:
        by_k_name = {s.k_name or s.options.get("sampler"): s for s in SAMPLERS}
        sampler = by_k_name[config["sampler"]]
        ways = [s.name for s in SCHEDULES if s.k_name == config["schedule"]]
        return sampler.name, ways[0] if sampler.schedules else None
    for sampler in SAMPLERS:
        matches = all(config.get(key) == value for key, value in sampler.options.items())
        if sampler.class_name == class_name and matches:
            break
    else:
        return class_name, None
    for schedule in SCHEDULES:
        switches = [key for key in schedule.options if key in _SIGMA_SWITCHES]
        if schedule.name not in sampler.own_schedules:  # the class passes over such settings
            continue
        if switches and all(config.get(key) for key in switches):
            return sampler.name, schedule.name
    return sampler.name, None
