"""LMS, Heun and the midpoint samplers (KDPM2) under their diffusers names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.plan import Limit, Plan
from sfumato.diffusion.samplers.singlestep import two_calls
from sfumato.diffusion.schedule import Array
from sfumato.diffusion.ways import sigmas_at_timesteps, with_corrections, with_middles
from sfumato.errors import InputError
from sfumato.schedulers.base import C, SchedulerOutput
from sfumato.schedulers.config import (
    SchedulerConfig,
    checked_timesteps,
    exactly_one,
    no_custom_timesteps,
    ramp_of,
)
from sfumato.schedulers.sigma import SigmaSpaceConfig, SigmaSpaceScheduler
from sfumato.schedulers.stepped import noisy_step, plain_step
from sfumato.schedulers.tables import placed

if TYPE_CHECKING:
    import torch


class AllStepsScheduler(SigmaSpaceScheduler[C]):
    """A scheduler that starts with all steps of training, as diffusers' do."""

    def _prepare(self) -> None:
        super()._prepare()
        self.set_timesteps(len(self))

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Choose the timesteps.

        Args:
            num_inference_steps: how many steps.
            device: where ``timesteps`` shall be.

        Raises:
            InputError: for a number out of range.
        """
        self._visit(*self._steps(num_inference_steps), device)

    def _steps(self, steps: Any, *, rounded: bool = False) -> tuple[np.ndarray, Array]:
        """Timesteps and sigmas of the steps, whatever calls they take."""
        return sigmas_at_timesteps(
            self._spaced(steps), self._sigma_table, ramp=ramp_of(self.config), rounded=rounded
        )

    def _visit(
        self, timesteps: np.ndarray, sigmas: Array, device: str | torch.device | None
    ) -> None:
        """Take these steps as the way of the coming run."""
        raise NotImplementedError


class LMSDiscreteScheduler(AllStepsScheduler[SigmaSpaceConfig]):
    """Linear multistep method of up to four slopes."""

    config_class: ClassVar[type[SchedulerConfig]] = SigmaSpaceConfig

    def _visit(
        self, timesteps: np.ndarray, sigmas: Array, device: str | torch.device | None
    ) -> None:
        self._follow(timesteps, sigmas, device)

    def plan(self, start: int = 0, *, order: int = 4) -> Plan:
        """The table for ``timesteps[start:]``; ``order`` is the number of slopes at most."""
        earlier = self._listed()[:start]
        return samplers.lms(self._frame(start), order=order, earlier=earlier)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """The next step; arguments as of `EulerDiscreteScheduler.step`, and the order."""
        result = self._advance(sample, model_output, timestep, options={"order": order})
        return self._result(result, return_dict)


@dataclass(frozen=True, kw_only=True)
class KDPM2Config(SigmaSpaceConfig):
    """Settings of the midpoint samplers; see `SigmaSpaceConfig`."""

    beta_start: float = 0.00085
    beta_end: float = 0.012


@dataclass(frozen=True, kw_only=True)
class HeunConfig(KDPM2Config):
    """Settings of Heun's method; see `SigmaSpaceConfig`.

    Attributes:
        clip_sample: clamp the denoised picture to ``-clip_sample_range .. clip_sample_range``.
    """

    clip_sample: bool = False
    clip_sample_range: float = 1.0

    @property
    def limit(self) -> Limit | None:
        """Clipping, if it is on."""
        return Limit(clip=self.clip_sample_range) if self.clip_sample else None


class HeunDiscreteScheduler(AllStepsScheduler[HeunConfig]):
    """Heun's method (arXiv:2206.00364, algorithm 1): two calls per step, one in the last."""

    config_class: ClassVar[type[SchedulerConfig]] = HeunConfig
    order: int = 2

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose the timesteps, by number or by hand.

        Args:
            num_inference_steps: how many steps.
            device: where ``timesteps`` shall be.
            num_train_timesteps: of the configuration; any other value is refused.
            timesteps: the timesteps of the steps, falling.

        Raises:
            InputError: for values out of range, or unless exactly one is given.
        """
        check_train_steps(num_train_timesteps, len(self))
        exactly_one(num_inference_steps=num_inference_steps, custom_timesteps=timesteps)
        if timesteps is None:
            return self._visit(*self._steps(num_inference_steps), device)
        config = self._settings
        no_custom_timesteps(
            config, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"
        )
        given = np.array(checked_timesteps(timesteps, len(self)), dtype=np.float32)
        return self._visit(*sigmas_at_timesteps(given, self._sigma_table, ramp=ramp_of({})), device)

    def _visit(
        self, timesteps: np.ndarray, sigmas: Array, device: str | torch.device | None
    ) -> None:
        self._follow(*with_corrections(timesteps, sigmas), device, steps=len(timesteps))

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        frame = self._frame(start)
        return samplers.singlestep(frame, two_calls(len(frame)), image=False)

    step = plain_step


class MidpointScheduler(AllStepsScheduler[KDPM2Config]):
    """What the two midpoint samplers share: calls at the start and in the middle of each step."""

    config_class: ClassVar[type[SchedulerConfig]] = KDPM2Config
    order: int = 2
    #: Share of noise at the end of a step.
    ancestral: ClassVar[float] = 0.0

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Choose the timesteps.

        Args:
            num_inference_steps: how many steps.
            device: where ``timesteps`` shall be.
            num_train_timesteps: of the configuration; any other value is refused.

        Raises:
            InputError: for a number out of range.
        """
        check_train_steps(num_train_timesteps, len(self))
        karras = bool(self._settings.use_karras_sigmas)
        self._visit(*self._steps(num_inference_steps, rounded=karras), device)

    def _steps(self, steps: Any, *, rounded: bool = False) -> tuple[np.ndarray, Array]:
        ramp = ramp_of(self.config)
        spaced = self._spaced(steps, np.float32 if ramp.kind is None else np.float64)
        return sigmas_at_timesteps(spaced, self._sigma_table, ramp=ramp, rounded=rounded)

    def _visit(
        self, timesteps: np.ndarray, sigmas: Array, device: str | torch.device | None
    ) -> None:
        self._forget()
        sigmas = sigmas.astype(np.float32).astype(np.float64)
        self.num_inference_steps = len(timesteps)
        self._way = with_middles(timesteps, sigmas, self._sigma_table, ancestral=self.ancestral)
        self.timesteps = placed(self._way.timesteps, device)
        listed = np.concatenate([sigmas[:1], np.repeat(sigmas[1:], 2), sigmas[-1:]])
        self.sigmas = listed.astype(np.float32)

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        frame = self._frame(start)
        return samplers.singlestep(
            frame, two_calls(len(frame)), image=False, ancestral=self.ancestral
        )


class KDPM2DiscreteScheduler(MidpointScheduler):
    """The midpoint method in log sigma (k-diffusion's DPM2)."""

    step = plain_step


class KDPM2AncestralDiscreteScheduler(MidpointScheduler):
    """The midpoint method with fresh noise at the end of every step (k-diffusion's DPM2 a)."""

    ancestral: ClassVar[float] = 1.0

    step = noisy_step


def check_train_steps(given: int | None, trained: int) -> None:
    """Raise `InputError` for another number of training timesteps than the configuration's."""
    if given not in (None, trained):
        raise InputError(
            f"`num_train_timesteps` is {trained} in the configuration but {given} in the call."
        )
