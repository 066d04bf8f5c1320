"""Networks that visit the accelerator; the device without data stands in for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sfumato.errors import InputError
from sfumato.pipelines import offload
from sfumato.pipelines.offload import LayerOffload, ModelOffload, offload_device
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_unet, weights_of

META = torch.device("meta")


class Moving(nn.Module):
    """A network that notes where it is sent, and stays."""

    def __init__(self, name: str, journal: list[str]) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.name, self.journal = name, journal

    def to(self, device: Any, *_: Any, **__: Any) -> Any:
        self.journal.append(f"{self.name} to {torch.device(device).type}")
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_networks_take_turns_on_the_device() -> None:
    journal: list[str] = []
    text, unet, vae, other = (Moving(name, journal) for name in ("text", "unet", "vae", "other"))
    hooks = ModelOffload(META, [text, unet, vae], [other])
    x = torch.zeros(1, 2)
    text(x)
    for _ in range(3):
        unet(x)
    other(x)
    vae.inner(x)  # as `decode` does, without calling the network itself
    assert journal == [
        "text to meta",
        "text to cpu",
        "unet to meta",
        "other to meta",
        "unet to cpu",
        "vae to meta",
    ]
    journal.clear()
    hooks.release()
    assert journal == ["other to cpu", "vae to cpu"]
    hooks.remove()
    journal.clear()
    unet(x)
    assert journal == []


@pytest.mark.parametrize("unit_bytes", [1, 20_000, 10**9])
def test_layers_visit_the_device_and_leave_the_weights_untouched(unit_bytes: int) -> None:
    unet = tiny_unet()
    before = weights_of(unet)
    hooks = LayerOffload(META, [unet], unit_bytes)
    where: set[str] = set()
    probe = unet.mid_block.register_forward_hook(  # inside, the layers are where they run
        lambda module, inputs, output: where.add(output.device.type)
    )
    sample = torch.zeros(1, 4, 8, 8, device=META)
    out = unet(sample, torch.tensor(3), torch.zeros(1, 5, 32, device=META)).sample
    probe.remove()
    assert out.device.type == "meta"
    assert where == {"meta"}
    hooks.remove()
    assert {p.device.type for p in unet.parameters()} == {"cpu"}
    for name, tensor in weights_of(unet).items():
        assert torch.equal(tensor, before[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_layers_come_back_when_a_forward_fails() -> None:
    unet = tiny_unet()
    hooks = LayerOffload(META, [unet], 20_000)
    with pytest.raises(RuntimeError):
        unet(torch.zeros(1, 3, 8, 8, device=META), torch.tensor(3), torch.zeros(1, 5, 32))
    assert {p.device.type for p in unet.parameters()} == {"cpu"}
    hooks.remove()


@pytest.mark.parametrize("name", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_an_offloaded_pipeline_draws_the_same_picture(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny_pipeline()
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}
    expected = pipe("a boat", generator=seeded(1), **call).images
    monkeypatch.setattr(
        "sfumato.pipelines.base.offload_device", lambda gpu_id, device: torch.device("cpu")
    )
    getattr(pipe, name)()
    assert pipe._offload is not None
    images = pipe("a boat", generator=seeded(1), **call).images
    assert torch.allclose(images, expected, rtol=0, atol=1e-5)  # layouts in memory may differ
    assert pipe._offload._handles
    assert not getattr(pipe._offload, "_present", [])  # everything went back after the call
    pipe.remove_all_hooks()
    assert pipe._offload is None


def test_moving_an_offloaded_pipeline_is_refused_or_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sfumato.pipelines.base.offload_device", lambda gpu_id, device: META)
    pipe = tiny_pipeline()
    pipe.enable_sequential_cpu_offload()
    assert pipe._execution_device == META
    assert pipe.device.type == "cpu"
    with pytest.raises(InputError, match="enable_sequential_cpu_offload"):
        pipe.to("meta")
    pipe.enable_model_cpu_offload()
    pipe.to("meta")
    assert "take turns" in caplog.text


def test_the_accelerator_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(offload.torch.accelerator, "current_accelerator", lambda **_: cuda)
    assert offload_device(None, None) == torch.device("cuda", 0)
    assert offload_device(2, None) == torch.device("cuda", 2)
    assert offload_device(None, "cuda:1") == torch.device("cuda", 1)
    assert offload_device(None, "cpu") is None
    with pytest.raises(ValueError, match="both `gpu_id`=1 and an index"):
        offload_device(1, "cuda:1")
