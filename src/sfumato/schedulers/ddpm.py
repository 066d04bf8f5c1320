"""DDPM under its diffusers name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.frame import as_trained
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.ddpm import VARIANCES
from sfumato.diffusion.schedule import spaced_timesteps
from sfumato.diffusion.ways import chained
from sfumato.schedulers.base import Scheduler, SchedulerOutput
from sfumato.schedulers.config import (
    SchedulerConfig,
    checked_steps,
    checked_timesteps,
    exactly_one,
)
from sfumato.schedulers.ddim import ThresholdConfig
from sfumato.schedulers.tables import placed

if TYPE_CHECKING:
    import torch

    from sfumato.diffusion.noise import Generators


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(ThresholdConfig):
    """Settings of DDPM; see `DDIMConfig`, and `samplers.ddpm` for ``variance_type``."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"variance_type": VARIANCES}

    variance_type: str = "fixed_small"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """As `SchedulerConfig.from_values`; a ``variance_type`` of None is none given.

        DPM-Solver has a setting of that name too, which is mostly None.
        """
        if values.get("variance_type", "") is None:
            values = {name: v for name, v in values.items() if name != "variance_type"}
        return super().from_values(values)


class DDPMScheduler(Scheduler[DDPMConfig]):
    """Denoising diffusion probabilistic models (arXiv:2006.11239); adds noise at every step.

    Without ``set_timesteps`` the steps are those of training.
    """

    config_class: ClassVar[type[SchedulerConfig]] = DDPMConfig

    def _prepare(self) -> None:
        super()._prepare()
        self.timesteps = np.arange(len(self) - 1, -1, -1)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the timesteps, by number or by hand.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` shall be.
            timesteps: the timesteps themselves, falling.

        Raises:
            InputError: for values out of range, or unless exactly one is given.
        """
        exactly_one(num_inference_steps=num_inference_steps, custom_timesteps=timesteps)
        if timesteps is not None:
            values = np.array(checked_timesteps(timesteps, len(self)), dtype=np.int64)
        else:
            config = self._settings
            n = checked_steps(num_inference_steps, len(self))
            spaced = spaced_timesteps(
                config.timestep_spacing, n, len(self), offset=config.steps_offset
            )
            values = spaced.round().astype(np.int64)
        self.num_inference_steps = len(values)
        self.timesteps = placed(values, device)

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        return self._table(self._told()[start:], -1)

    def _table(self, timesteps: np.ndarray, last: int) -> Plan:
        config = self._settings
        way = chained(timesteps, last, self._acp)
        frame = as_trained(way, config.prediction_type, limit=config.limit)
        return samplers.ddpm(frame, variance=config.variance_type)

    def previous_timestep(self, timestep: int | torch.Tensor) -> int:
        """The timestep at which a step from ``timestep`` ends; -1 is no noise."""
        if self.num_inference_steps is None:
            return int(timestep) - 1
        listed = self.timesteps.tolist()
        index = self._index(int(timestep), listed)
        return listed[index + 1] if index + 1 < len(listed) else -1

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One step from ``timestep``.

        Args:
            model_output: the network's answer; with ``learned_range`` of twice the channels.
            timestep: at which it was asked.
            sample: what it was asked about.
            generator: where noise comes from.
            return_dict: return an output object rather than a tuple.
        """
        last = self.previous_timestep(timestep)
        plan = self._table(np.array([int(timestep)]), last)
        previous, denoised = self._apply(plan, 0, sample, model_output, generator)
        return SchedulerOutput(previous, denoised) if return_dict else (previous, denoised)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What a ``v_prediction`` network should answer: ``alpha * noise - sigma * sample``."""
        alpha, sigma = self._training_levels(sample, timesteps)
        return alpha * noise - sigma * sample
