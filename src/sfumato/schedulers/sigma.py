"""What the schedulers on ``x = image + sigma * noise`` share: the Euler family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfumato.diffusion.frame import Frame, over_sigma
from sfumato.diffusion.schedule import Array, Schedule, spaced_timesteps
from sfumato.schedulers.base import C
from sfumato.schedulers.config import TrainedConfig, checked_steps
from sfumato.schedulers.stepped import SteppedScheduler
from sfumato.schedulers.tables import placed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class SigmaSpaceConfig(TrainedConfig):
    """Settings of the samplers in sigma space.

    Attributes:
        use_karras_sigmas: spread sigmas as Karras et al. do.
        use_exponential_sigmas: spread them evenly in their logarithm.
        use_beta_sigmas: spread them by a beta distribution.
        timestep_spacing: see `schedule.spaced_timesteps`.
        steps_offset: added to ``leading`` timesteps.
    """

    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    timestep_spacing: str = "linspace"
    steps_offset: int = 0


class SigmaSpaceScheduler(SteppedScheduler[C]):
    """A scheduler on ``x = image + sigma * noise``: the Euler family."""

    def _spaced(self, steps: Any, kind: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
        """Timesteps by number, checked, as numbers of a kind."""
        config: Any = self.config
        n = checked_steps(steps, len(self))
        values = spaced_timesteps(config.timestep_spacing, n, len(self), offset=config.steps_offset)
        return values.astype(kind)

    def _follow(
        self,
        timesteps: NDArray[Any],
        sigmas: Array,
        device: str | torch.device | None,
        *,
        steps: int | None = None,
    ) -> None:
        """Take these as the way of the coming run; ``steps`` if not as many as timesteps."""
        n = len(timesteps)
        self._forget()
        self.num_inference_steps = n if steps is None else steps
        self.sigmas = sigmas.astype(np.float32)
        self._way = Schedule.from_sigmas(timesteps.astype(np.float32), self._listed()[: n + 1])
        self.timesteps = placed(self._way.timesteps, device)

    def _frame(self, start: int) -> Frame:
        """The calls of ``timesteps[start:]``."""
        return over_sigma(
            self._way_from(start),
            self._settings["prediction_type"],
            limit=self._settings.limit,
            init_sigma=float(self._largest()),
        )

    def _largest(self) -> np.float32:
        """The largest sigma; with ``leading`` timesteps, that of picture and noise together."""
        largest = np.float32(self._listed().max())
        spacing = self.config.get("timestep_spacing")
        return largest if spacing in ("linspace", "trailing") else np.sqrt(largest**2 + 1)

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sigmas.new_ones(len(self.sigmas)), self.sigmas

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """The largest sigma; with ``leading`` timesteps, that of picture and noise together."""
        import torch

        return torch.tensor(self._largest())

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """``sample`` scaled to a variance of one, as the network was trained."""
        index = self._locate(self.timesteps[0] if timestep is None else timestep)
        self._require_timesteps()
        assert self._way is not None
        return sample * float(self._way.now.alpha[index])
