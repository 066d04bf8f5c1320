"""DPM-Solver with steps that choose their own size (arXiv:2206.00927, section 3.4): DPM adaptive.

A table cannot hold it, since how far a step goes depends on what the network says. Every trial
takes a step twice, by a lower and a higher order that share their calls; what they differ by says
whether the result is kept and how far the next trial goes. `AdaptiveRun` is a solver for
`sfumato.diffusion.denoise` whose length grows until it is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfumato.array_kinds import as_float32, in_type_of, namespace
from sfumato.diffusion.advance import weighted
from sfumato.diffusion.frame import Frame, over_sigma
from sfumato.diffusion.samplers.exponential import Leg, leg
from sfumato.diffusion.samplers.moves import Move
from sfumato.diffusion.samplers.singlestep import call_move, step_down
from sfumato.diffusion.schedule import Array, Levels, Schedule, timestep_at
from sfumato.errors import NumericalError

#: How near to the end, in log sigma, the run is done.
_NEAR = 1e-5


@dataclass(frozen=True, kw_only=True)
class Adaptivity:
    """How steps are chosen.

    Attributes:
        order: 2 or 3, of the higher method; a trial takes as many calls.
        rtol, atol: what both methods may differ by, as a share of x and at least.
        h_init: the first step, in log sigma.
        pcoeff, icoeff, dcoeff: of the controller of the step size.
        accept_safety: a trial is kept unless it makes the step shrink below this share.
        eta: share of noise at the end of each step, as of ancestral methods.
        s_noise: factor on the noise.
        max_trials: after so many the run is given up.
    """

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


class StepSize:
    """A PID controller of the size of steps (as of adaptive integrators of ODEs).

    Attributes:
        length: of the next trial, in log sigma.
    """

    def __init__(self, settings: Adaptivity) -> None:
        self.length = settings.h_init
        self._least = settings.accept_safety
        p, i, d = settings.pcoeff, settings.icoeff, settings.dcoeff
        order = 1.5 if settings.eta else settings.order
        self._powers = (p + i + d) / order, -(p + 2 * d) / order, d / order
        self._kept: tuple[float, float] | None = None

    def accepts(self, error: float) -> bool:
        """Whether to keep a trial of this error; sets the length of the next."""
        inverse = 1 / (error + 1e-8)
        last, before = self._kept or (inverse, inverse)
        first, second, third = self._powers
        factor = 1 + math.atan(inverse**first * last**second * before**third - 1)
        self.length *= factor
        if self._kept is None:
            self._kept = last, before
        if factor >= self._least:
            self._kept = inverse, last
            return True
        return False


class AdaptiveRun:
    """DPM adaptive on its way; a `sfumato.diffusion.run.Solver` that grows as it goes.

    A trial that is not kept leaves x where it was, and what the network said there is not asked
    again.

    Args:
        table: sigma at each training timestep.
        begin, end: the sigmas between which to go.
        settings: how steps are chosen; for the batch as a whole.
        prediction: what the network predicts, see `frame.to_denoised`.
        device: where the network wants its timesteps; None for NumPy.
        draw: draws noise of a type in place of the loop's source.
    """

    def __init__(
        self,
        table: Array,
        begin: float,
        end: float,
        settings: Adaptivity,
        *,
        prediction: str = "epsilon",
        device: Any = None,
        draw: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.settings, self.init_sigma = settings, begin
        self._table, self._prediction, self._device = table, prediction, device
        self._draw = draw
        self._size = StepSize(settings)
        self._reached, self._goal = -math.log(begin), -math.log(end)
        self._start: Any = None  # x where the trial begins, and where the one before it began
        self._before: Any = None
        self._noises: list[Any] = []  # what the network said in this trial, newest first
        self._trials = 0
        self._frame: Frame
        self.timesteps: Any = []
        self._ask(begin)

    def __len__(self) -> int:
        """How many calls there have been or are certain."""
        return len(self.timesteps)

    @property
    def share(self) -> float:
        """How far it has come, 0 to 1 in log sigma."""
        begin = -math.log(self.init_sigma)
        return min((self._reached - begin) / (self._goal - begin), 1.0)

    def network_input(self, row: int, x: Any) -> Any:
        """What the network sees for ``x``."""
        return x * float(self._frame.input_scale[0])

    def step(self, row: int, x: Any, output: Any, draw: Callable[[Any], Any]) -> tuple[Any, Any]:
        """The point to ask at next, or the end; and the denoised picture.

        Raises:
            NumericalError: no size of steps will do.
        """
        wide = x if str(x.dtype).endswith("float64") else as_float32(x)
        output = in_type_of(output[:, : x.shape[1]], wide)
        noise = weighted(self._frame.epsilon[0], (wide, output), like=wide)
        denoised = weighted(self._frame.denoised[0], (wide, output), like=wide)
        if not self._noises:
            self._start = wide
        if self._before is None:
            self._before = wide
        self._noises.insert(0, noise)
        if len(self._noises) < self.settings.order:
            following = self._between()
        else:
            following = self._judge(draw)
        return in_type_of(following, x), in_type_of(denoised, x)

    def _target(self) -> tuple[Levels, float]:
        """Where the trial goes down to, and the noise to add there."""
        to = _level(min(self._reached + self._size.length, self._goal))
        if not self.settings.eta:
            return to, 0.0
        down, _ = step_down(_level(self._reached), to, self.settings.eta)
        down = _level(min(float(down.log_snr[0]), self._goal))
        return down, math.sqrt(max(float(to.sigma[0] ** 2 - down.sigma[0] ** 2), 0.0))

    def _between(self) -> Any:
        """The next point within the step, and the question to ask there."""
        target = float(self._target()[0].log_snr[0])
        known, order = len(self._noises), self.settings.order
        at = self._reached + known / order * (target - self._reached)
        self._ask(math.exp(-at))
        step = leg(_level(self._reached), _level(at), image=False)
        return self._moved(call_move(step, self._places(target), "heun"), self._noises)

    def _places(self, target: float) -> Array:
        """In log sigma, where the network was asked in this trial, newest first."""
        shares = np.arange(len(self._noises))[::-1] / self.settings.order
        return self._reached + shares * (target - self._reached)

    def _judge(self, draw: Callable[[Any], Any]) -> Any:
        """End a trial: keep its result, or try a smaller step from where it began."""
        (to, added), order = self._target(), self.settings.order
        step = leg(_level(self._reached), to, image=False)
        places = self._places(float(to.log_snr[0]))
        high = self._moved(call_move(step, places, "midpoint"), self._noises)
        low = self._moved(call_move(step, places[1:], "midpoint"), self._noises[1:])
        reached = min(self._reached + self._size.length, self._goal)
        kept = self._size.accepts(self._error(low, high, step))
        self._trials += 1
        if kept:
            self._reached, self._before, self._noises = reached, low, []
            if added:
                high = high + added * self.settings.s_noise * self._drawn(high, draw)
            if self._reached >= self._goal - _NEAR:
                return high
        if self._trials >= self.settings.max_trials:
            raise NumericalError(
                f"DPM adaptive did not come to an end in {self._trials} trials of {order} calls"
                f" each; {self.share:.0%} of the way are done.",
                hint="Raise the scheduler's `rtol` and `atol`, or use DPM++ 2M.",
            )
        if kept:
            self._ask(math.exp(-self._reached))
            return high
        self._noises = self._noises[-1:]
        return self._between()

    def _error(self, low: Any, high: Any, step: Leg) -> float:
        """The difference of two results, measured in what is tolerated."""
        functions, settings = namespace(low), self.settings
        size = functions.maximum(abs(low), abs(self._before))
        tolerated = functions.clip(settings.rtol * size, settings.atol, None)
        error = float((((low - high) / tolerated) ** 2).mean()) ** 0.5
        if not math.isfinite(error):
            raise NumericalError(
                f"NaN or infinity in a step of DPM adaptive, at sigma {math.exp(-step.start):.3g}.",
                hint="16-bit floats overflow in some models: try float32 or bfloat16.",
            )
        return error

    def _moved(self, move: Move, noises: list[Any]) -> Any:
        return weighted((move.keep, *move.answers), (self._start, *noises), like=self._start)

    def _drawn(self, like: Any, draw: Callable[[Any], Any]) -> Any:
        own = self._draw
        return in_type_of(draw(like.dtype) if own is None else own(like.shape, like.dtype), like)

    def _ask(self, sigma: float) -> None:
        """The question of the next call: at this sigma."""
        time = timestep_at(np.array([sigma]), self._table).astype(np.float32)
        self._frame = over_sigma(
            Schedule.from_sigmas(time, np.array([sigma, 0.0])), self._prediction
        )
        if self._device is None:
            self.timesteps.append(time[0])
            return
        import torch

        self.timesteps.append(torch.tensor(float(time[0]), device=self._device))


def _level(log: float) -> Levels:
    """Levels over sigma where log sigma is minus this."""
    return Levels(np.ones(1), np.array([math.exp(-log)]))
