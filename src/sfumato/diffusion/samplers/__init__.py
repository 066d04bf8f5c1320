"""Samplers: functions that turn a schedule into a table (`sfumato.diffusion.plan`)."""

from sfumato.diffusion.samplers.consistency import lcm, tcd
from sfumato.diffusion.samplers.ddim import ddim
from sfumato.diffusion.samplers.ddpm import ddpm
from sfumato.diffusion.samplers.deis import deis
from sfumato.diffusion.samplers.dpm import dpm_multistep
from sfumato.diffusion.samplers.dpm_singlestep import dpm_singlestep
from sfumato.diffusion.samplers.euler import euler, euler_ancestral
from sfumato.diffusion.samplers.lms import lms
from sfumato.diffusion.samplers.pndm import pndm
from sfumato.diffusion.samplers.two_calls import heun, kdpm2
from sfumato.diffusion.samplers.unipc import unipc

__all__ = [
    "ddim",
    "ddpm",
    "deis",
    "dpm_multistep",
    "dpm_singlestep",
    "euler",
    "euler_ancestral",
    "heun",
    "kdpm2",
    "lcm",
    "lms",
    "pndm",
    "tcd",
    "unipc",
]
