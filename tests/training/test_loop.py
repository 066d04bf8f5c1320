"""The loop on a problem small enough to know the answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import NumericalError
from sfumato.training.loop import TrainConfig, Trainer, train
from sfumato.training.optimizer import OptimizerConfig
from sfumato.training.report import Log, plot_loss, read_log


class Line:
    """Learn y = 2x + 1."""

    def __init__(self, poison_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(1, 1)
        self.modules = {"net": self.net}
        self.poison_at = poison_at

    def loss(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(64, 1, generator=generator)
        error = (self.net(x) - (2 * x + 1)).square().mean()
        return {"loss": error * float("nan") if index == self.poison_at else error}


def config(**changes: object) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=0.05, warmup_steps=1, weight_decay=0.0, ema_decay=0.5)
    settings = {"steps": 150, "dtype": "float32", "checkpoint_every": 50, "optimizer": optimizer}
    return TrainConfig(**{**settings, **changes})


def test_the_loss_falls_to_the_known_answer(tmp_path: Path) -> None:
    recipe = Line()
    steps = list(train(recipe, config(), tmp_path))
    assert [s.index for s in steps] == list(range(150))
    assert steps[0].loss > 1
    assert steps[-1].loss < 1e-3
    assert recipe.net.weight.item() == pytest.approx(2, abs=0.02)
    assert recipe.net.bias.item() == pytest.approx(1, abs=0.02)


def test_a_finished_run_yields_nothing_and_can_be_prolonged(tmp_path: Path) -> None:
    list(train(Line(), config(), tmp_path))
    assert list(train(Line(), config(), tmp_path)) == []
    assert [s.index for s in train(Line(), config(steps=153), tmp_path)] == [150, 151, 152]


def test_averages_are_swapped_in_and_out(tmp_path: Path) -> None:
    trainer = Trainer(Line(), config(), tmp_path)
    iterator = trainer.steps()
    for _ in range(5):
        next(iterator)
    weight = trainer.optimizer.weights["net.weight"]
    trained = weight.clone()
    with trainer.averaged():
        assert torch.equal(weight, trainer.optimizer.averages["net.weight"])
        assert not torch.equal(weight, trained)
        assert not trainer.recipe.modules["net"].training
    assert torch.equal(weight, trained)
    assert trainer.recipe.modules["net"].training


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_checkpoints(tmp_path: Path) -> None:
    seen = []
    with pytest.raises(NumericalError, match=r"step 60 is nan.*--learning-rate"):
        for step in train(Line(poison_at=60), config(), tmp_path):
            seen.append(step.index)
    assert seen == list(range(60))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000050"]
    assert next(iter(train(Line(), config(), tmp_path))).index == 50


def test_the_log_holds_each_step_once_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, finished=0)
    steps = list(train(Line(), config(steps=20, checkpoint_every=10), tmp_path))
    for step in steps[:14]:
        log.add(step, 0.1)
    log.close()
    with path.open("a") as file:
        file.write('{"step": 14, "los')
    resumed = Log(path, finished=10)
    for step in steps[10:]:
        resumed.add(step, 0.1)
    resumed.close()
    entries = read_log(path)
    assert [e["step"] for e in entries] == list(range(20))
    assert entries[3]["loss"] == pytest.approx(steps[3].loss, abs=1e-6)


def test_the_plot_falls_where_the_loss_falls() -> None:
    entries = [{"step": i, "loss": 100.0 * 0.9**i} for i in range(60)]
    image = plot_loss(entries)
    blue = [
        min(y for y in range(image.height) if image.getpixel((x, y)) == (0x1F, 0x5F, 0xAE))
        for x in (100, 400, 800)
    ]
    assert blue == sorted(blue)
    assert blue[0] < blue[1] < blue[2]


def test_a_plot_of_nothing_is_an_empty_frame() -> None:
    assert plot_loss([]).size == (900, 420)
