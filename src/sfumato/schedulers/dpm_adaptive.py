"""DPM adaptive as a scheduler: it chooses its steps as it goes, by what the network says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from sfumato.diffusion.adaptive import AdaptiveRun, Adaptivity
from sfumato.diffusion.schedule import SIGMA_RAMPS, TABLE_SCHEDULES, Schedule, timestep_at
from sfumato.diffusion.ways import sigmas_by_name
from sfumato.errors import ConfigError, InputError
from sfumato.schedulers.config import SchedulerConfig, TrainedConfig, checked_steps
from sfumato.schedulers.sigma import SigmaSpaceScheduler
from sfumato.schedulers.tables import placed

if TYPE_CHECKING:
    import torch

    from sfumato.diffusion.noise import Generators

#: The least and the largest value of each setting of the step sizes.
_RANGES = {
    "rtol": (1e-8, 10.0), "atol": (1e-8, 10.0), "h_init": (1e-6, 100.0), "pcoeff": (-10.0, 10.0),
    "icoeff": (-10.0, 10.0), "dcoeff": (-10.0, 10.0), "accept_safety": (0.0, 10.0),
    "eta": (0.0, 1.0), "s_noise": (0.0, 100.0), "max_trials": (1, 1_000_000),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DPMAdaptiveConfig(TrainedConfig):
    """Settings of DPM adaptive; the defaults are k-diffusion's.

    Attributes:
        order, rtol, atol, h_init, pcoeff, icoeff, dcoeff, accept_safety, eta, s_noise, max_trials:
            see `sfumato.diffusion.adaptive.Adaptivity`.
        schedule: of the levels at which a given picture may be noised; nothing else has to do with
            the number of steps.
        sigma_min: where the run ends; the smallest sigma of training if not given.
        sigma_max: where it begins; the largest one.
    """

    pin_last: ClassVar[bool] = True
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "schedule": (*SIGMA_RAMPS, *TABLE_SCHEDULES)
    }

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    eta: float = 0.0
    s_noise: float = 1.0
    max_trials: int = 1000
    schedule: str = "uniform"
    sigma_min: float | None = None
    sigma_max: float | None = None
    rescale_betas_zero_snr: bool = False

    def validate(self) -> None:
        super().validate()
        if self.order not in (2, 3):
            raise ConfigError(f"`order` has to be 2 or 3 but is {self.order}.")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"`{name}` has to be from {low:g} to {high:g} but is {value}.")


class DPMAdaptiveScheduler(SigmaSpaceScheduler[DPMAdaptiveConfig]):
    """DPM-Solver of order 2 or 3 whose steps choose their size.

    How often the network is asked follows from the picture, not from ``num_inference_steps``. So
    ``timesteps`` are not where it is asked but only levels where a run may begin, and in place of
    ``step`` there is `run`, for a loop of one's own:

        for step in sfumato.diffusion.denoise.denoise(network, x, context, scheduler.run()): ...
    """

    config_class: ClassVar[type[SchedulerConfig]] = DPMAdaptiveConfig
    #: Whether `run` has to be used in place of ``step``.
    adaptive: ClassVar[bool] = True

    def _prepare(self) -> None:
        super()._prepare()
        self.set_timesteps(len(self))
        self.num_inference_steps = None

    def _largest(self) -> np.float32:
        return np.float32(self._listed().max())

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Choose the levels where a run may begin: so many, of which all but the first serve only
        those that begin with a given picture.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` shall be.

        Raises:
            InputError: for a number out of range.
        """
        config, table = self._settings, self._sigma_table
        steps = checked_steps(num_inference_steps, len(self))
        ends = {"low": config.sigma_min, "high": config.sigma_max}
        sigmas = sigmas_by_name(config.schedule, steps, table, **ends).astype(np.float32)
        self._forget()
        self.num_inference_steps = steps
        self.sigmas = sigmas
        times = timestep_at(sigmas[:-1].astype(np.float64), table).astype(np.float32)
        self._way = Schedule.from_sigmas(times, self._listed())
        self.timesteps = placed(times, device)

    def run(
        self, device: str | torch.device | None = "cpu", generator: Generators = None
    ) -> AdaptiveRun:
        """A run that is about to begin, at the first of ``timesteps`` or at ``begin_index``.

        Args:
            device: where the network wants its timesteps; None for NumPy.
            generator: where noise comes from, with ``eta`` above 0, if not from the loop.

        Raises:
            InputError: before ``set_timesteps``.
        """
        self._require_timesteps()
        config = self._settings
        names = Adaptivity.__dataclass_fields__
        low = float(self._sigma_table[0]) if config.sigma_min is None else config.sigma_min
        return AdaptiveRun(
            self._sigma_table,
            float(self._listed()[self._begin_index or 0]),
            low,
            Adaptivity(**{name: getattr(config, name) for name in names}),
            prediction=config.prediction_type,
            device=device,
            draw=None if generator is None else _source(generator, device),
        )

    def plan(self, start: int = 0) -> NoReturn:
        """There is no table of steps that follow from what the network says.

        Raises:
            InputError: always.
        """
        raise InputError(
            "DPM adaptive chooses its steps as it goes, so that there is no table of them.",
            hint="Use `run`, or another sampler such as DPM++ 2M.",
        )

    def step(self, *args: Any, **kwargs: Any) -> NoReturn:
        """A loop over ``timesteps`` would not do; see `run`.

        Raises:
            InputError: always.
        """
        raise InputError(
            "DPM adaptive chooses its timesteps as it goes, which a loop over `timesteps` cannot.",
            hint="Use `run` with `sfumato.diffusion.denoise.denoise`, or another sampler.",
        )


def _source(generator: Generators, device: Any) -> Any:
    from sfumato.diffusion.noise import randn_tensor

    return lambda shape, dtype: randn_tensor(shape, generator, device, dtype)
