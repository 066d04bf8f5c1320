"""UniPC under its diffusers name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sfumato.diffusion import samplers
from sfumato.diffusion.plan import Limit, Plan
from sfumato.errors import ConfigError
from sfumato.schedulers.config import SchedulerConfig
from sfumato.schedulers.solver import SolverScheduler, SpacedSolverConfig
from sfumato.schedulers.stepped import plain_step

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class UniPCMultistepConfig(SpacedSolverConfig):
    """Settings of UniPC; see `SpacedSolverConfig` and `samplers.unipc`.

    Attributes:
        predict_x0: extrapolate the picture; otherwise the noise.
        solver_type: ``bh1`` or ``bh2``.
        disable_corrector: numbers of steps that are not corrected.
        solver_p: a scheduler that predicts in UniPC's place; not available here.
        final_sigmas_type: end at ``zero`` or at ``sigma_min``.
        rescale_betas_zero_snr: make the last training level nearly pure noise.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"solver_type": ("bh1", "bh2")}
    translations: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}
    }

    predict_x0: bool = True
    solver_type: str = "bh2"
    disable_corrector: tuple[int, ...] = ()
    solver_p: Any = None
    final_sigmas_type: str = "zero"
    rescale_betas_zero_snr: bool = False

    def validate(self) -> None:
        super().validate()
        if self.solver_p is not None:
            raise ConfigError(
                "`solver_p` is not supported.", hint="Leave it out: UniPC has its own predictor."
            )
        if not self.predict_x0 and self.prediction_type == "flow_prediction":
            raise ConfigError("`predict_x0 = False` does not know flow_prediction.")

    @property
    def limit(self) -> Limit | None:
        """Dynamic thresholding, if it is on and pictures are extrapolated."""
        return super().limit if self.predict_x0 else None


class UniPCMultistepScheduler(SolverScheduler[UniPCMultistepConfig]):
    """UniPC (arXiv:2302.04867)."""

    config_class: ClassVar[type[SchedulerConfig]] = UniPCMultistepConfig

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the timesteps.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` shall be.
            mu: logarithm of ``flow_shift``, with ``use_dynamic_shifting``.

        Raises:
            InputError: for a number out of range.
        """
        self._choose(
            num_inference_steps,
            device,
            mu=mu,
            rounded=bool(self._settings.use_karras_sigmas),
            final=self._settings.final_sigmas_type,
            end_of_ramp=True,
        )

    def plan(self, start: int = 0) -> Plan:
        """The table for ``timesteps[start:]``."""
        config = self._settings
        return samplers.unipc(
            self._frame(start),
            order=config.solver_order,
            solver_type=config.solver_type,
            predict_x0=bool(config.predict_x0),
            lower_order_final=bool(config.lower_order_final),
            disable_corrector=config.disable_corrector,
            start=start,
        )

    step = plain_step
