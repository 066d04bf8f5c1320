"""DDIM and DDPM for many timesteps at once (ParaDiGMS, arXiv:2305.16317), under their diffusers
names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sfumato.array_kinds import namespace
from sfumato.diffusion.plan import Plan
from sfumato.schedulers.ddim import DDIMScheduler
from sfumato.schedulers.ddpm import DDPMScheduler

if TYPE_CHECKING:
    import torch


class DDIMParallelScheduler(DDIMScheduler):
    """DDIM that can take a step from each of many timesteps in one call."""

    _is_ode_scheduler: ClassVar[bool] = True

    def batch_step_no_noise(
        self,
        model_output: torch.Tensor,
        timesteps: torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> torch.Tensor:
        """One step for each picture from its own timestep.

        Args:
            model_output: the network's answers, ``(n, ...)``.
            timesteps: ``(n,)``, at which it was asked.
            sample: what it was asked about.
            eta: as of ``step``; the noise is left out.
            use_clipped_model_output: as of ``step``.

        Raises:
            InputError: before ``set_timesteps``.
        """
        self._require_timesteps()
        # Below timestep 0 there is no noise here, whatever `set_alpha_to_one` says.
        plan = self._table(_numbers(timesteps), eta, use_clipped_model_output, below_zero=1.0)
        return _each_by_its_row(plan, sample, model_output)


class DDPMParallelScheduler(DDPMScheduler):
    """DDPM that can take a step from each of many timesteps in one call."""

    _is_ode_scheduler: ClassVar[bool] = False

    def batch_step_no_noise(
        self, model_output: torch.Tensor, timesteps: torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """One step for each picture from its own timestep, without the noise.

        Args:
            model_output: the network's answers, ``(n, ...)``.
            timesteps: ``(n,)``, at which it was asked.
            sample: what it was asked about.
        """
        stride = len(self) // (self.num_inference_steps or len(self))
        plans = [self._table(np.array([t]), t - stride) for t in _numbers(timesteps).tolist()]
        answers = model_output[:, : sample.shape[1]]
        return namespace(sample).concatenate(
            [
                _each_by_its_row(plan, sample[i : i + 1], answers[i : i + 1])
                for i, plan in enumerate(plans)
            ]
        )


def _numbers(timesteps: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    return timesteps.flatten().cpu().numpy().astype(np.int64)


def _each_by_its_row(plan: Plan, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Each picture of a batch by the row of its number, with noise of zero."""

    def nothing(i: int) -> Any:
        return lambda dtype: sample.new_zeros(sample[i : i + 1].shape, dtype=dtype)

    from sfumato.diffusion.run import PlanRun

    run = PlanRun(plan)
    parts = [
        run.step(i, sample[i : i + 1], output[i : i + 1], nothing(i))[0] for i in range(len(plan))
    ]
    return namespace(sample).concatenate(parts)
