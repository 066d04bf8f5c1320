"""Improved PNDM under its diffusers name; for networks of continuous time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.frame import as_trained
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.schedule import Levels, Schedule
from sfumato.errors import ConfigError, InputError
from sfumato.schedulers.config import SchedulerConfig, checked_steps
from sfumato.schedulers.stepped import SteppedScheduler, plain_step

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class IPNDMConfig(SchedulerConfig):
    """Settings of IPNDM.

    Attributes:
        num_train_timesteps: only the number of timesteps before ``set_timesteps``.
        trained_betas: levels of noise from 1 down to 0, one more than there are steps.
    """

    num_train_timesteps: int = 1000
    trained_betas: tuple[float, ...] | None = None

    def validate(self) -> None:
        super().validate()
        betas = self.trained_betas
        if betas is not None and not (len(betas) > 1 and all(0 <= beta <= 1 for beta in betas)):
            raise ConfigError("`trained_betas` has to be two or more numbers between 0 and 1.")


class IPNDMScheduler(SteppedScheduler[IPNDMConfig]):
    """Linear multistep steps on the noise of a ``v_prediction`` network (arXiv:2202.09778).

    Time runs from 1 to 0, and the level of noise is ``sin(time * pi / 2) ** 2``.
    """

    config_class: ClassVar[type[SchedulerConfig]] = IPNDMConfig
    swappable: ClassVar[bool] = False
    tuple_has_image: ClassVar[bool] = False

    def _prepare(self) -> None:
        super()._prepare()
        betas = self._settings.trained_betas
        self.set_timesteps(len(self) if betas is None else len(betas) - 1)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Choose the timesteps.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` shall be.

        Raises:
            InputError: for a number out of range.
        """
        n = checked_steps(num_inference_steps, len(self))
        given = self._settings.trained_betas
        if given is not None and len(given) != n + 1:
            raise InputError(f"{n} steps need {n + 1} `trained_betas`, but there are {len(given)}.")
        self._forget()
        self.num_inference_steps = n
        import torch

        time = torch.from_numpy(np.append(np.linspace(1, 0, n + 1)[:-1], 0.0)).float()
        self.betas = (time * math.pi / 2).sin() ** 2 if given is None else torch.tensor(given)
        self.alphas = (1.0 - self.betas**2) ** 0.5
        self.sigmas = self.betas / self.alphas
        self.timesteps = (torch.atan2(self.betas, self.alphas) / math.pi * 2)[:-1].to(device)

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        self._require_timesteps()
        alpha, sigma = self.alphas[start:].double().numpy(), self.betas[start:].double().numpy()
        levels = Levels(alpha, sigma)
        way = Schedule(self._told()[start:], levels[:-1], levels[1:])
        return samplers.ipndm(as_trained(way, "v_prediction"))

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.alphas, self.betas

    step = plain_step
