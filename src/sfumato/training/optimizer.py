"""Mixed precision, written out: networks compute in bfloat16, masters and averages stay in float32.

Autocast would do the same behind the scenes; here the three copies are visible. ``weights`` are
what the network multiplies with, ``masters`` are what AdamW updates, ``averages`` (EMA) are what
is shipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.config import Config, check_int
from sfumato.errors import ConfigError, NumericalError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """AdamW; the rate warms up, stays, and falls linearly over the last ``decay_share`` of steps.

    A rate that stays level until the end is near lets a run be prolonged: only its last part, the
    fall, depends on how long the whole is.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_share: float = 0.2
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999

    def validate(self) -> None:
        check_int("warmup_steps", self.warmup_steps, 0, 10**9)
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"`learning_rate` has to lie in (0, 1) but is {self.learning_rate}.")
        for name in ("decay_share", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` has to lie in [0, 1] but is {getattr(self, name)}.")


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The rate of step ``step`` (from 0) of ``total_steps``.

    >>> config = OptimizerConfig(learning_rate=0.5, warmup_steps=10, decay_share=0.5)
    >>> [learning_rate(config, step, 100) for step in (4, 9, 49, 75)]
    [0.25, 0.5, 0.5, 0.25]
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = config.decay_share * total_steps
    decay = min(1.0, (total_steps - step) / decay_steps) if decay_steps else 1.0
    return config.learning_rate * min(warmup, decay)


def ema_decay(config: OptimizerConfig, step: int) -> float:
    """Decay of the average at ``step``: it ramps up, so that early noise is forgotten soon."""
    return min(config.ema_decay, (1 + step) / (10 + step))


class Optimizer:
    """Updates the parameters of several networks together.

    Args:
        modules: networks by name; parameters with ``requires_grad=False`` are left alone.
        config: rates and decays.
        compute_dtype: what the networks compute in; they are cast in place.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        config: OptimizerConfig,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.compute_dtype = config, compute_dtype
        named = {
            f"{name}.{key}": parameter
            for name, module in modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.masters = {k: p.detach().float().clone() for k, p in named.items()}
        self.averages = {k: m.clone() for k, m in self.masters.items()}
        for module in modules.values():
            module.to(compute_dtype)
        self.weights = named
        # Gains and biases are not decayed: pulling a norm's gain to zero only fights the loss.
        matrices = [m for m in self.masters.values() if m.ndim > 1]
        vectors = [m for m in self.masters.values() if m.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)

    def step(self, step: int, total_steps: int) -> float:
        """Apply the gradients that the networks hold and clear them.

        Returns:
            The norm of the whole gradient before clipping.

        Raises:
            NumericalError: the gradient is not finite; no weight has been touched.
        """
        for key, weight in self.weights.items():
            master, grad = self.masters[key], weight.grad
            master.grad = torch.zeros_like(master) if grad is None else grad.float()
            weight.grad = None
        masters = list(self.masters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(masters, self.config.max_grad_norm))
        if not math.isfinite(norm):
            raise NumericalError(
                f"The gradient of step {step} is not finite.",
                hint="Resume from the last checkpoint with a lower --learning-rate.",
            )
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(self.config, step, total_steps)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            share = 1 - ema_decay(self.config, step)
            for key, weight in self.weights.items():
                self.averages[key].lerp_(self.masters[key], share)
                weight.copy_(self.masters[key])
        return norm

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a resumed run needs, as flat dictionaries of tensors."""
        moments: dict[str, Tensor] = {}
        for key, master in self.masters.items():
            for name, value in self.adamw.state.get(master, {}).items():
                moments[f"{key}/{name}"] = value
        return {"masters": self.masters, "averages": self.averages, "moments": moments}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from `state`, bit for bit."""
        for key, master in self.masters.items():
            master.copy_(state["masters"][key])
            self.averages[key].copy_(state["averages"][key])
            self.weights[key].copy_(master)
            prefix = f"{key}/"
            self.adamw.state[master] = {
                name.removeprefix(prefix): value.clone()
                for name, value in state["moments"].items()
                if name.startswith(prefix)
            }
