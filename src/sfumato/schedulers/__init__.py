"""Schedulers under diffusers' names: thin shells around `sfumato.diffusion`.

    scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)

In a loop of one's own they work as in diffusers (``set_timesteps``, ``scale_model_input``,
``step``). `Scheduler.plan` gives the whole run as a table for `sfumato.diffusion.denoise`.
"""

from __future__ import annotations

from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.schedulers.base import Scheduler, SchedulerOutput
    from sfumato.schedulers.consistency_models import CMStochasticIterativeScheduler
    from sfumato.schedulers.ddim import DDIMScheduler
    from sfumato.schedulers.ddpm import DDPMScheduler
    from sfumato.schedulers.deis import DEISMultistepScheduler
    from sfumato.schedulers.dpm_adaptive import DPMAdaptiveScheduler
    from sfumato.schedulers.dpmsolver_multistep import DPMSolverMultistepScheduler
    from sfumato.schedulers.dpmsolver_sde import DPMSolverSDEScheduler
    from sfumato.schedulers.dpmsolver_singlestep import DPMSolverSinglestepScheduler
    from sfumato.schedulers.edm import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
    from sfumato.schedulers.euler import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
    from sfumato.schedulers.inverse import (
        DDIMInverseScheduler,
        DPMSolverMultistepInverseScheduler,
    )
    from sfumato.schedulers.ipndm import IPNDMScheduler
    from sfumato.schedulers.k_diffusion import KDiffusionScheduler
    from sfumato.schedulers.lcm import LCMScheduler, TCDScheduler
    from sfumato.schedulers.multicall import (
        HeunDiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        KDPM2DiscreteScheduler,
        LMSDiscreteScheduler,
    )
    from sfumato.schedulers.parallel import DDIMParallelScheduler, DDPMParallelScheduler
    from sfumato.schedulers.pndm import PNDMScheduler
    from sfumato.schedulers.sasolver import SASolverScheduler
    from sfumato.schedulers.unipc import UniPCMultistepScheduler

#: Each is imported when it is first used.
_MODULE_OF = {
    "CMStochasticIterativeScheduler": "consistency_models",
    "DDIMInverseScheduler": "inverse",
    "DDIMParallelScheduler": "parallel",
    "DDIMScheduler": "ddim",
    "DDPMParallelScheduler": "parallel",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMAdaptiveScheduler": "dpm_adaptive",
    "DPMSolverMultistepInverseScheduler": "inverse",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "DPMSolverSDEScheduler": "dpmsolver_sde",
    "DPMSolverSinglestepScheduler": "dpmsolver_singlestep",
    "EDMDPMSolverMultistepScheduler": "edm",
    "EDMEulerScheduler": "edm",
    "EulerAncestralDiscreteScheduler": "euler",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "multicall",
    "IPNDMScheduler": "ipndm",
    "KDPM2AncestralDiscreteScheduler": "multicall",
    "KDPM2DiscreteScheduler": "multicall",
    "KDiffusionScheduler": "k_diffusion",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "multicall",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "sasolver",
    "Scheduler": "base",
    "SchedulerOutput": "base",
    "TCDScheduler": "lcm",
    "UniPCMultistepScheduler": "unipc",
}
#: All scheduler classes.
CLASS_NAMES: tuple[str, ...] = tuple(
    n for n in _MODULE_OF if n.endswith("Scheduler") and n != "Scheduler"
)


#: Timesteps and sigmas in which ten steps go furthest (arXiv:2404.14507, "Align your steps").
_AYS_SIGMAS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0)
AysSchedules: dict[str, list[float]] = {
    "StableDiffusionTimesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
    "StableDiffusionSigmas": list(_AYS_SIGMAS),
}


class KarrasDiffusionSchedulers(Enum):
    """Schedulers that can take each other's place in a pipeline, with diffusers' numbers."""

    DDIMScheduler = 1
    DDPMScheduler = 2
    PNDMScheduler = 3
    LMSDiscreteScheduler = 4
    EulerDiscreteScheduler = 5
    HeunDiscreteScheduler = 6
    EulerAncestralDiscreteScheduler = 7
    DPMSolverMultistepScheduler = 8
    DPMSolverSinglestepScheduler = 9
    KDPM2DiscreteScheduler = 10
    KDPM2AncestralDiscreteScheduler = 11
    DEISMultistepScheduler = 12
    UniPCMultistepScheduler = 13
    DPMSolverSDEScheduler = 14
    EDMEulerScheduler = 15


__all__ = [
    "CLASS_NAMES",
    "AysSchedules",
    "CMStochasticIterativeScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMAdaptiveScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDiffusionScheduler",
    "KarrasDiffusionSchedulers",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "Scheduler",
    "SchedulerOutput",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sfumato.schedulers' has no attribute '{name}'")
    value = getattr(import_module(f"sfumato.schedulers.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
