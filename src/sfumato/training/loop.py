"""The training loop: a generator of steps, the same for every recipe.

A recipe (`Recipe`) says which networks learn and what the loss of a batch is. The loop owns the
optimizer, checkpoints and resuming; whoever iterates owns progress bars, logs, sample pictures and
stopping.

    for step in train(recipe, config, Path("runs/mine")):
        print(step.index, step.loss)

All randomness of step ``k`` is a function of the seed and ``k``, so a run that is killed and
resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.config import Config, check_choice, check_int
from sfumato.errors import NumericalError
from sfumato.training.checkpoint import agree_on_config, load_checkpoint, save_checkpoint
from sfumato.training.data import step_generator
from sfumato.training.optimizer import Optimizer, OptimizerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """What every recipe has in common."""

    steps: int = 10_000
    batch_size: int = 32
    seed: int = 0
    dtype: str = "bfloat16"
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def validate(self) -> None:
        check_int("steps", self.steps, 1, 10**9)
        check_int("batch_size", self.batch_size, 1, 2**20)
        check_int("seed", self.seed, 0, 2**63 - 1)
        check_int("checkpoint_every", self.checkpoint_every, 1, 10**9)
        check_int("keep_checkpoints", self.keep_checkpoints, 1, 1000)
        check_choice("dtype", self.dtype, tuple(DTYPES))


class Recipe(Protocol):
    """What the loop needs to know of a kind of training."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The networks that learn, by name."""
        ...

    def loss(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of step ``index``'s loss, scalars; ``"loss"`` is the one to minimise."""
        ...


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One finished step."""

    index: int  # from 0
    terms: dict[str, float]  # the loss and its parts
    grad_norm: float
    seconds: float

    @property
    def loss(self) -> float:
        return self.terms["loss"]


class Trainer:
    """A recipe with its optimizer and the folder that its run lives in."""

    def __init__(self, recipe: Recipe, config: TrainConfig, run: Path) -> None:
        self.recipe, self.config, self.run = recipe, config, run
        for module in recipe.modules.values():
            module.train()
        self.optimizer = Optimizer(recipe.modules, config.optimizer, DTYPES[config.dtype])
        self.finished = 0

    def resume(self) -> int:
        """Load the newest complete checkpoint, if any; returns the number of finished steps."""
        found = load_checkpoint(self.run)
        if found:
            self.finished, state = found
            self.optimizer.load_state(state)
        return self.finished

    def steps(self) -> Iterator[TrainStep]:
        """Train from where the run stands to the configured number of steps.

        Raises:
            NumericalError: the loss or gradient is NaN or infinite; checkpoints are kept.
        """
        total = self.config.steps
        while self.finished < total:
            started = time.perf_counter()
            index = self.finished
            terms = self.recipe.loss(index, step_generator(self.config.seed, index))
            values = {name: float(term.detach()) for name, term in terms.items()}
            if not math.isfinite(values["loss"]):
                raise NumericalError(
                    f"The loss of step {index} is {values['loss']}.",
                    hint="Resume from the last checkpoint with a lower --learning-rate.",
                )
            terms["loss"].backward()
            norm = self.optimizer.step(index, total)
            self.finished += 1
            yield TrainStep(index, values, norm, time.perf_counter() - started)
            if self.finished % self.config.checkpoint_every == 0 or self.finished == total:
                self.save()

    def save(self) -> Path:
        """Write a checkpoint of the present state."""
        keep = self.config.keep_checkpoints
        return save_checkpoint(self.run, self.finished, self.optimizer.state(), keep=keep)

    def averaged(self) -> AveragedWeights:
        """A context in which the networks hold their averaged (EMA) weights."""
        return AveragedWeights(self.optimizer, self.recipe)


class AveragedWeights:
    """Holds the averages, in float32 and evaluation mode, while it is entered."""

    def __init__(self, optimizer: Optimizer, recipe: Recipe) -> None:
        self.optimizer, self.recipe = optimizer, recipe

    @torch.no_grad()
    def __enter__(self) -> None:
        for module in self.recipe.modules.values():
            module.eval().to(torch.float32)
        for key, weight in self.optimizer.weights.items():
            weight.copy_(self.optimizer.averages[key])

    @torch.no_grad()
    def __exit__(self, *exc: object) -> None:
        for module in self.recipe.modules.values():
            module.train().to(self.optimizer.compute_dtype)
        for key, weight in self.optimizer.weights.items():
            weight.copy_(self.optimizer.masters[key])


def train(
    recipe: Recipe, config: TrainConfig, run: Path, settings: Mapping[str, object] | None = None
) -> Iterator[TrainStep]:
    """Start or resume the run in ``run`` and yield its remaining steps.

    Args:
        settings: further choices of the recipe that a resumed run has to repeat.
    """
    agree_on_config(run, {**config.to_dict(), **(settings or {})})
    trainer = Trainer(recipe, config, run)
    trainer.resume()
    yield from trainer.steps()
