"""DEIS under its diffusers name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.frame import Frame
from sfumato.diffusion.plan import Plan
from sfumato.schedulers.config import SchedulerConfig
from sfumato.schedulers.solver import SolverScheduler, SpacedSolverConfig
from sfumato.schedulers.stepped import plain_step

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class DEISMultistepConfig(SpacedSolverConfig):
    """Settings of DEIS; see `SpacedSolverConfig`.

    Attributes:
        algorithm_type: only ``deis``.
        solver_type: only ``logrho``.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("deis",),
        "solver_type": ("logrho",),
    }
    translations: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {"dpmsolver": "deis", "dpmsolver++": "deis"},
        "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
    }

    algorithm_type: str = "deis"
    solver_type: str = "logrho"


class DEISMultistepScheduler(SolverScheduler[DEISMultistepConfig]):
    """Diffusion exponential integrator sampler (arXiv:2204.13902), log-rho variant.

    It ends at the smallest sigma, not at none.
    """

    config_class: ClassVar[type[SchedulerConfig]] = DEISMultistepConfig

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the timesteps; arguments as of `UniPCMultistepScheduler.set_timesteps`."""
        self._choose(
            num_inference_steps,
            device,
            mu=mu,
            rounded=bool(self._settings.use_karras_sigmas),
            final="sigma_min",
            end_of_ramp=True,
        )

    def _frame(self, start: int) -> Frame:
        """The calls of ``timesteps[start:]``; the noise is what the picture leaves of x."""
        frame, config = super()._frame(start), self._settings
        if config.prediction_type not in ("v_prediction", "flow_prediction"):
            return frame
        alpha, sigma = frame.now.alpha, frame.now.sigma
        if config.prediction_type == "flow_prediction" and not config.use_flow_sigmas:
            sigma = frame.now.ratio  # of the list, as in the picture
        kept, answered = frame.denoised.T
        epsilon = np.stack([(1 - alpha * kept) / sigma, -alpha * answered / sigma], axis=1)
        return replace(frame, epsilon=epsilon)

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        config = self._settings
        return samplers.deis(
            self._frame(start),
            order=min(config.solver_order, 3),
            lower_order_final=bool(config.lower_order_final),
            steps=self.num_inference_steps,
        )

    step = plain_step
