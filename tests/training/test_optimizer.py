"""AdamW with masters and averages, against torch's own and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.errors import ConfigError, NumericalError
from sfumato.training.optimizer import Optimizer, OptimizerConfig, ema_decay, learning_rate


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def backward(module: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
    module(x).float().square().mean().backward()


def test_float32_training_equals_torch_adamw() -> None:
    config = OptimizerConfig(weight_decay=0.1, warmup_steps=3, max_grad_norm=0.05)
    ours, theirs = net(), net()
    optimizer = Optimizer({"net": ours}, config)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim <= 1]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=config.betas,
    )
    for step in range(20):
        backward(ours, step)
        optimizer.step(step, 20)
        backward(theirs, step)
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        for group in reference.param_groups:
            group["lr"] = learning_rate(config, step, 20)
        reference.step()
        reference.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_bfloat16_weights_follow_float32_masters() -> None:
    module = net()
    optimizer = Optimizer({"net": module}, OptimizerConfig(), torch.bfloat16)
    for step in range(3):
        backward(module, step, torch.bfloat16)
        optimizer.step(step, 10)
    for key, weight in optimizer.weights.items():
        assert weight.dtype == torch.bfloat16
        assert optimizer.masters[key].dtype == torch.float32
        assert torch.equal(weight, optimizer.masters[key].bfloat16())


def test_averages_follow_the_stated_decay() -> None:
    module, config = net(), OptimizerConfig(ema_decay=0.5)
    optimizer = Optimizer({"net": module}, config)
    expected = {k: v.clone() for k, v in optimizer.masters.items()}
    for step in range(4):
        backward(module, step)
        optimizer.step(step, 4)
        decay = ema_decay(config, step)
        expected = {k: decay * v + (1 - decay) * optimizer.masters[k] for k, v in expected.items()}
    for key, average in optimizer.averages.items():
        assert torch.allclose(average, expected[key], atol=1e-6)


def test_state_restores_every_bit() -> None:
    first, second = net(0), net(1)
    a = Optimizer({"net": first}, OptimizerConfig())
    for step in range(5):
        backward(first, step)
        a.step(step, 10)
    b = Optimizer({"net": second}, OptimizerConfig())
    b.load_state(a.state())
    for step in range(5, 10):
        for module, optimizer in ((first, a), (second, b)):
            backward(module, step)
            optimizer.step(step, 10)
    for x, y in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(x, y)
    assert all(torch.equal(a.averages[k], b.averages[k]) for k in a.averages)


def test_frozen_parameters_are_left_alone() -> None:
    module = net()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    optimizer = Optimizer({"net": module}, OptimizerConfig())
    backward(module, 0)
    optimizer.step(0, 1)
    assert torch.equal(module[0].weight, before)
    assert not any(key.startswith("net.0") for key in optimizer.masters)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    module = net()
    optimizer = Optimizer({"net": module}, OptimizerConfig())
    before = {k: v.clone() for k, v in optimizer.masters.items()}
    backward(module, 0)
    module[0].weight.grad[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        optimizer.step(0, 10)
    assert all(torch.equal(before[k], v) for k, v in optimizer.masters.items())


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"ema_decay": 1.5}, {"decay_share": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)
