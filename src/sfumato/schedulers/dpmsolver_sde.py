"""DPM++ SDE under its diffusers name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sfumato.diffusion import samplers
from sfumato.diffusion.plan import Plan
from sfumato.diffusion.samplers.singlestep import two_calls
from sfumato.diffusion.schedule import Array
from sfumato.diffusion.ways import sigmas_at_timesteps, with_middles
from sfumato.schedulers.base import SchedulerOutput
from sfumato.schedulers.config import SchedulerConfig, ramp_of
from sfumato.schedulers.multicall import AllStepsScheduler, KDPM2Config, check_train_steps
from sfumato.schedulers.tables import placed

if TYPE_CHECKING:
    import torch

    from sfumato.diffusion.brownian import BrownianPath
    from sfumato.diffusion.noise import Generators


@dataclass(frozen=True, kw_only=True)
class DPMSolverSDEConfig(KDPM2Config):
    """Settings of DPM++ SDE; see `SigmaSpaceConfig`.

    Attributes:
        noise_sampler_seed: which Brownian path the noise comes from. A list has one for each
            picture. Without it pictures with seeds of their own have the paths of these, as in
            A1111, and others have another one in each run, as in diffusers.
    """

    noise_sampler_seed: int | tuple[int, ...] | None = None


class DPMSolverSDEScheduler(AllStepsScheduler[DPMSolverSDEConfig]):
    """DPM-Solver++ of second order, stochastic, with two calls per step (k-diffusion's DPM++ SDE).

    In ``step`` the noise is that of a Brownian path (`BrownianPath`), as in diffusers. The plan
    draws standard normal numbers from any source, which comes to the same distribution.
    """

    config_class: ClassVar[type[SchedulerConfig]] = DPMSolverSDEConfig
    order: int = 2

    def _forget(self) -> None:
        super()._forget()
        self._path: BrownianPath | None = None

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Choose the timesteps; arguments as of `KDPM2DiscreteScheduler.set_timesteps`."""
        check_train_steps(num_train_timesteps, len(self))
        self._visit(*self._steps(num_inference_steps), device)

    def _steps(self, steps: Any, *, rounded: bool = False) -> tuple[np.ndarray, Array]:
        exact = self._spaced(steps, np.float64)
        ramp = ramp_of(self.config)
        return sigmas_at_timesteps(exact, self._sigma_table, ramp=ramp, rounded=rounded)

    def _visit(
        self, timesteps: np.ndarray, sigmas: Array, device: str | torch.device | None
    ) -> None:
        self._forget()
        sigmas = sigmas.astype(np.float32).astype(np.float64)
        self.num_inference_steps = len(timesteps)
        self._way = with_middles(timesteps, sigmas, self._sigma_table)
        self.timesteps = placed(self._way.timesteps, device)
        listed = np.concatenate([sigmas[:1], np.repeat(sigmas[1:-1], 2), sigmas[-1:]])
        self.sigmas = listed.astype(np.float32)

    def plan(self, start: int = 0, *, s_noise: float = 1.0) -> Plan:
        """The table for ``timesteps[start:]``; ``s_noise`` is a factor on the noise."""
        frame = self._frame(start)
        return samplers.singlestep(
            frame, two_calls(len(frame)), eta=1.0, brownian=True, s_noise=s_noise
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        s_noise: float = 1.0,
        generator: Generators = None,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """The next call's row.

        Args:
            model_output: the network's answer.
            timestep: at which it was asked; the first one says where the run begins.
            sample: what it was asked about, before `scale_model_input`.
            return_dict: return an output object rather than a tuple.
            s_noise: factor on the noise.
            generator: has the seeds of the pictures, if they have any.
        """
        self._require_timesteps()
        noise = self._noise(self._locate(timestep), sample, generator)
        options = {"s_noise": s_noise}
        result = self._advance(sample, model_output, timestep, noise=noise, options=options)
        return self._result(result, return_dict)

    def _noise(
        self, call: int, sample: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor | None:
        """What the Brownian path does between the sigmas of a call and of its result."""
        if call + 1 >= len(self.timesteps):
            return None
        # Through logarithms and back in the precision of `sigmas`: the path tells 0.000001 apart.
        time = -self.sigmas[call - call % 2 : call - call % 2 + 2].log()
        middle = time[0] + (time[1] - time[0]) * 0.5
        places = [float((-t).exp()) for t in (time[0], middle, time[1])]
        if self._path is None:
            self._path = self._new_path(sample, generator)
        return self._path.noise(places[call % 2], places[call % 2 + 1])

    def _new_path(self, sample: torch.Tensor, generator: Generators) -> BrownianPath:
        import torch

        from sfumato.diffusion.brownian import BrownianPath
        from sfumato.diffusion.noise import SeededNoise, before_start, seeds_of

        seed: Any = self._settings.noise_sampler_seed
        randn = None
        if seed is None and (seed := seeds_of(generator)) is not None:
            randn = getattr(before_start(generator), "randn", SeededNoise.randn)
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, []).item())
        ends = self.sigmas[self.sigmas > 0]
        low, high = float(ends.min()), float(ends.max())
        return BrownianPath(sample.shape, low, high, seed, sample.dtype, sample.device, randn)
