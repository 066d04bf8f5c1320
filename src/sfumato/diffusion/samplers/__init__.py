"""Samplers: functions that turn a schedule into a table (`sfumato.diffusion.plan`)."""

from sfumato.diffusion.samplers.ddim import ddim
from sfumato.diffusion.samplers.euler import euler, euler_ancestral

__all__ = ["ddim", "euler", "euler_ancestral"]
