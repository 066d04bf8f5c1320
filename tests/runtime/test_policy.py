"""What is chosen for the machine when nobody chooses."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sfumato import StableDiffusionPipeline
from sfumato.errors import InputError
from sfumato.runtime import allocator, machine, policy
from sfumato.runtime.machine import Machine, this_machine
from tests.pipelines.tiny import tiny_pipeline

GENOA = "processor\t: 0\nflags\t\t: fpu sse avx2 avx512f avx512_vnni avx512_bf16\n\nprocessor: 1\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(policy.SWITCH, raising=False)
    caches = (this_machine, policy.prepare_process, allocator.keep_memory)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, *instructions: str, processors: int = 2) -> None:
    made = Machine(instructions=instructions, processors=processors)
    monkeypatch.setattr(policy, "this_machine", lambda: made)


@pytest.mark.parametrize(
    ("text", "expected", "fast"),
    [
        (GENOA, ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), True),
        (GRAVITON, ("asimd", "sve", "bf16"), True),
        ("flags\t: fpu sse avx2\n", ("avx2",), False),
        ("nothing known\n", (), False),
    ],
)
def test_instructions_are_read_from_what_the_kernel_says(
    text: str,
    expected: tuple[str, ...],
    fast: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(machine, "CPU_INFO", file)
    assert this_machine().instructions == expected
    assert this_machine().fast_bfloat16 is fast


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("nonsense", 64)],
)
def test_a_container_gets_no_more_threads_than_it_may_use(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(limit)
    monkeypatch.setattr(machine, "CPU_LIMIT", file)
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert this_machine().processors == expected


def test_the_older_kind_of_container_limit_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPU_LIMIT", tmp_path / "none")
    for name, value in (("CPU_QUOTA", "300000"), ("CPU_PERIOD", "100000")):
        (tmp_path / name).write_text(value)
        monkeypatch.setattr(machine, name, tmp_path / name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert this_machine().processors == 3


def test_only_large_models_become_bfloat16_and_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, "avx512_bf16")
    assert policy.dtype_for_size(policy.LARGE) is torch.bfloat16
    assert policy.dtype_for_size(policy.LARGE - 1) is torch.float32
    pretend(monkeypatch, "avx2", "avx512f")
    assert policy.dtype_for_size(2**40) is torch.float32


def test_accelerators_get_the_half_precision_that_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert policy.dtype_for_size(1, torch.device("cuda")) is expected
    assert policy.dtype_for_size(1, torch.device("mps")) is torch.float16


def test_the_environment_chooses_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(policy.SWITCH, "bfloat16")
    assert policy.dtype_for_size(1) is torch.bfloat16
    monkeypatch.setenv(policy.SWITCH, "bf16")
    with pytest.raises(InputError, match="SFUMATO_DTYPE is 'bf16'; it has to be one of auto"):
        policy.dtype_for_size(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_chosen_precision_keeps_the_latents_and_their_noise_in_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "avx512_bf16")
    monkeypatch.setattr(machine, "LARGE", 1)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.unet.dtype is pipe.vae.dtype is torch.bfloat16
    seen = []

    def watch(_pipe: object, _step: int, _time: object, tensors: dict[str, torch.Tensor]) -> dict:
        seen.append(tensors["latents"].dtype)
        return tensors

    def draw(pipe: StableDiffusionPipeline) -> torch.Tensor:
        seed = torch.Generator().manual_seed(0)
        return pipe(
            "a cat", num_inference_steps=2, generator=seed, output_type="latent",
            callback_on_step_end=watch,
        ).images  # fmt: skip

    chosen = draw(pipe)
    assert set(seen) == {torch.float32}
    assert StableDiffusionPipeline.from_pipe(pipe).latents_dtype is torch.float32
    exact = draw(StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32))
    torch.testing.assert_close(chosen, exact, rtol=0, atol=0.05 * exact.abs().max().item())

    asked = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert draw(asked).dtype is torch.bfloat16  # as in diffusers
    assert pipe.to(torch.float32).latents_dtype is None


def test_models_stay_float32_where_an_accelerator_may_take_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LARGE", 1)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.unet.dtype is torch.float32
    assert pipe.latents_dtype is None


def test_the_choice_is_logged_in_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "keep_memory", lambda: "somewhere")
    with caplog.at_level(logging.INFO, "sfumato.runtime.policy"):
        policy.prepare_process()
        policy.prepare_process()
    assert len(caplog.messages) == 1
    assert "processors" in caplog.text and "memory from somewhere" in caplog.text


def _said(environment: dict[str, str]) -> str:
    script = "from sfumato.runtime.allocator import keep_memory; print(keep_memory())"
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "SFUMATO_"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=plain | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_is_kept_unless_the_user_says_otherwise() -> None:
    assert _said({}) == "glibc, keeping freed memory"
    assert "SFUMATO_KEEP_MEMORY=0" in _said({"SFUMATO_KEEP_MEMORY": "0"})
    assert "MALLOC_TRIM_THRESHOLD_" in _said({"MALLOC_TRIM_THRESHOLD_": "1000000"})


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_blocks_are_returned_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    monkeypatch.setattr(allocator, "keep_memory", lambda: "glibc, keeping freed memory")
    monkeypatch.setattr(allocator, "_mallopt", lambda: lambda *args: said.append(args))
    with pytest.raises(RuntimeError), allocator.returning_memory():
        assert said == [(-3, 2 * 2**20)]
        raise RuntimeError
    assert said[1:] == [(-3, 2**31 - 1)]
    monkeypatch.setattr(allocator, "keep_memory", lambda: "jemalloc, which keeps memory by itself")
    with allocator.returning_memory():
        assert len(said) == 2


def test_another_allocator_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f01 r-xp 0 08:01 1 /usr/lib/libjemalloc.so.2\n")
    monkeypatch.setattr(allocator, "MAPPINGS", maps)
    assert allocator.keep_memory().startswith("jemalloc")
