"""Samplers: functions that turn a run's frame (`sfumato.diffusion.frame`) into a table
(`sfumato.diffusion.plan`)."""

from sfumato.diffusion.samplers.adams import deis, sa_solver, unipc
from sfumato.diffusion.samplers.consistency import lcm, renoised, tcd
from sfumato.diffusion.samplers.ddim import ddim
from sfumato.diffusion.samplers.ddpm import ddpm
from sfumato.diffusion.samplers.dpm import dpm_multistep
from sfumato.diffusion.samplers.euler import euler
from sfumato.diffusion.samplers.lms import lms
from sfumato.diffusion.samplers.pndm import ipndm, pndm
from sfumato.diffusion.samplers.singlestep import singlestep

__all__ = [
    "ddim",
    "ddpm",
    "deis",
    "dpm_multistep",
    "euler",
    "ipndm",
    "lcm",
    "lms",
    "pndm",
    "renoised",
    "sa_solver",
    "singlestep",
    "tcd",
    "unipc",
]
