"""k-diffusion's samplers and schedules in one class, for what diffusers has no class for.

With it every pair of `samplers.named.NAMED` and of the sigma schedules can be had, as A1111 and
ComfyUI offer them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.named import NAMED, Named
from sfumato.diffusion.samplers.singlestep import orders_in_thirds
from sfumato.diffusion.schedule import (
    SIGMA_RAMPS,
    TABLE_SCHEDULES,
    Array,
    Schedule,
    check_sigmas,
    log_table,
    timestep_at,
)
from sfumato.diffusion.ways import (
    in_thirds,
    sigmas_by_name,
    with_calls_ahead,
    with_corrections,
    with_middles,
    with_restarts,
)
from sfumato.errors import ConfigError
from sfumato.schedulers.config import SchedulerConfig, TrainedConfig, checked_steps, exactly_one
from sfumato.schedulers.sigma import SigmaSpaceScheduler
from sfumato.schedulers.stepped import noisy_step
from sfumato.schedulers.tables import placed

if TYPE_CHECKING:
    import torch


_CALLS_PER_STEP = {"ends": 2, "middle": 2, "lowered": 2, "restarts": 2, "ahead": 3}


@dataclass(frozen=True, kw_only=True)
class KDiffusionConfig(TrainedConfig):
    """Settings of k-diffusion's samplers.

    Attributes:
        sampler: k-diffusion's name, a key of `samplers.named.NAMED`.
        schedule: how sigmas are spread: a key of `schedule.SIGMA_RAMPS` or `TABLE_SCHEDULES`.
        eta: share of noise of the samplers that add any; 0 adds none.
        s_noise: factor on the noise.
        sigma_min: smallest sigma of the ramps, if not that of training.
        sigma_max: largest one.
        quantize: tell the network the nearest whole timestep, as ComfyUI does.
        discard_penultimate: leave the last sigma but one out, as the programs do for ``dpm_2``.
    """

    pin_last: ClassVar[bool] = True
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sampler": tuple(NAMED),
        "schedule": (*SIGMA_RAMPS, *TABLE_SCHEDULES),
    }

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    sampler: str = "dpmpp_2m"
    schedule: str = "karras"
    eta: float = 1.0
    s_noise: float = 1.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    quantize: bool = False
    discard_penultimate: bool = False
    rescale_betas_zero_snr: bool = False

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"`eta` has to be between 0 and 1 but is {self.eta}.")


class KDiffusionScheduler(SigmaSpaceScheduler[KDiffusionConfig]):
    """k-diffusion's samplers by name; ``step`` and the rest as of the other schedulers.

    >>> scheduler = KDiffusionScheduler(sampler="heun", schedule="uniform")
    >>> scheduler.set_timesteps(4)
    >>> scheduler.timesteps.round().tolist()  # two calls a step, and one in the last
    [999.0, 666.0, 666.0, 333.0, 333.0, 0.0, 0.0]
    """

    config_class: ClassVar[type[SchedulerConfig]] = KDiffusionConfig

    def _prepare(self) -> None:
        super()._prepare()
        self.order = _CALLS_PER_STEP.get(self._named.calls, 1)
        self.timesteps = np.arange(len(self) - 1, -1, -1, dtype=np.float32)
        self.sigmas = np.append(self._sigma_table[::-1], 0.0).astype(np.float32)

    @property
    def wants_negative(self) -> bool:
        """Whether ``step`` wants twice the channels: guided answer, then the negative prompt's.

        Those of CFG++ do. Given the guided answer alone they take it for both, and are the
        samplers without CFG++.
        """
        return self._named.wants_negative

    @property
    def _named(self) -> Named:
        return NAMED[self._settings.sampler]

    def _largest(self) -> np.float32:
        return np.float32(self._listed().max())

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose the way: by number, or by hand.

        Args:
            num_inference_steps: how many steps; for ``dpm_fast`` how many calls.
            device: where ``timesteps`` shall be.
            sigmas: the sigmas, falling, with the one where the last step ends.

        Raises:
            InputError: for values out of range, or unless exactly one is given.
        """
        exactly_one(num_inference_steps=num_inference_steps, sigmas=sigmas)
        if sigmas is not None:
            levels = check_sigmas(sigmas)
        else:
            levels = self._spread(checked_steps(num_inference_steps, len(self)))
        self._forget()
        self._way = self._calls(levels.astype(np.float32).astype(np.float64))
        self.num_inference_steps = len(levels) - 1
        self.timesteps = placed(self._way.timesteps, device)
        self.sigmas = np.append(self._way.now.ratio, levels[-1]).astype(np.float32)

    def _spread(self, n: int) -> Array:
        """``n + 1`` falling sigmas."""
        config, table = self._settings, self._sigma_table
        ends = {"low": config.sigma_min, "high": config.sigma_max}
        if self._named.calls == "thirds":
            whole = sigmas_by_name("karras", 2, table, **ends)
            return in_thirds(whole[0], whole[1], orders_in_thirds(n))
        if not config.discard_penultimate:
            return sigmas_by_name(config.schedule, n, table, **ends)
        return np.delete(sigmas_by_name(config.schedule, n + 1, table, **ends), -2)

    def _calls(self, sigmas: Array) -> Schedule:
        """The calls of steps through these sigmas."""
        timesteps = timestep_at(sigmas[:-1], self._sigma_table).astype(np.float32)
        if self._named.calls == "ends":
            way = Schedule.from_sigmas(*with_corrections(timesteps, sigmas))
        elif self._named.calls == "ahead":
            way = with_calls_ahead(timesteps, sigmas)
        elif self._named.calls == "restarts":
            way = with_restarts(sigmas, self._sigma_table)
        elif self._named.calls in ("middle", "lowered"):
            lowered = self._settings.eta if self._named.calls == "lowered" else 0.0
            way = with_middles(timesteps, sigmas, self._sigma_table, ancestral=lowered)
        else:
            way = Schedule.from_sigmas(timesteps, sigmas)
        if not self._settings.quantize:
            return way
        logs, wanted = log_table(self._sigma_table), np.log(way.now.ratio)
        nearest = np.abs(logs[:, None] - wanted).argmin(axis=0)
        return Schedule(nearest.astype(np.float32), way.now, way.next)

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        config = self._settings
        return self._named.make(self._frame(start), config.eta, config.s_noise)

    step = noisy_step
