"""Machine code of the engine "compile": one small network, compiled in earnest."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.adapters.network import add, fuse, remove, unfuse
from sfumato.errors import SfumatoError
from sfumato.models.unet import UNet2DConditionModel
from sfumato.runtime import compiled, compiled_code
from sfumato.runtime.compiled import engine_for
from sfumato.runtime.compiled_build import has_compiler
from tests.pipelines.tiny import tiny_unet
from tests.runtime.compiled_cases import LATENTS, ONE, by_torch, error, lora, predict


@pytest.mark.parametrize("seed", range(4))
def test_a_view_has_the_numbers_of_a_weight_and_does_not_keep_them(seed: int) -> None:
    rng = random.Random(seed)
    array = np.random.randn(5, 7, 3, 4).astype(np.float32)
    alive = weakref.ref(array)
    order = rng.sample(range(4), 4)
    tensor = torch.from_numpy(array).permute(order)[rng.randrange(3) :, :: rng.choice([1, 2])]
    view = compiled_code._view(tensor)
    assert torch.equal(view, tensor) and view.stride() == tensor.stride()
    assert view.data_ptr() == tensor.data_ptr() and type(view) is torch.Tensor
    del array, tensor
    assert alive() is None and view is not None


def test_a_view_of_any_type_and_of_a_single_number_can_be_had() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.bool):
        for tensor in (torch.ones(3, 2).to(dtype), torch.ones(()).to(dtype)):
            assert torch.equal(compiled_code._view(tensor), tensor)


def test_code_with_numbers_of_a_weight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        def __init__(self, *_: Any) -> None:
            pass

        def get_constant_fqns(self) -> list[str]:
            return ["network.a"]

    monkeypatch.setattr(compiled_code, "_Loader", Loaded)
    state = {"a": torch.ones(1), "b": torch.ones(1)}
    compiled_code.Code(Path("a.pt2"), state, frozenset("a"))
    with pytest.raises(SfumatoError, match="put numbers of b into the code"):
        compiled_code.Code(Path("a.pt2"), state, frozenset("ab"))
    with pytest.raises(SfumatoError, match=r"holds numbers besides its weights \(a\)"):
        compiled_code.Code(Path("a.pt2"), {}, frozenset())


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")

ELSEWHERE = """
import sys, torch
from sfumato.runtime import compiled
from tests.pipelines.tiny import tiny_unet
from tests.runtime.compiled_cases import ONE, predict

def fail(*args, **kwargs):
    raise AssertionError("nothing has to be traced")

torch.export.export = compiled.build = fail
network = tiny_unet(**ONE)
network.engine = compiled.engine_for(network, folder=sys.argv[1])
torch.save(predict(network), sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the compiled UNet."""
    folder, temporary = tmp_path_factory.mktemp("compiled"), tmp_path_factory.mktemp("temporary")
    network = tiny_unet(**ONE)
    network.engine = engine_for(network, folder=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        predict(network)
    assert len(list(folder.iterdir())) == 1, "it was compiled"
    left = [path for path in temporary.rglob("*") if path.is_file()]
    assert not left, "the compiler's files are there for all to see, or left"
    return folder


@pytest.fixture
def real(folder: Path, monkeypatch: pytest.MonkeyPatch) -> UNet2DConditionModel:
    """The UNet with an engine of its own, which may build no more."""

    def fail(*_: Any) -> Path:
        raise AssertionError("it was compiled before")

    monkeypatch.setattr(compiled, "build", fail)
    network = tiny_unet(**ONE)
    network.engine = engine_for(network, folder=folder)
    return network


@pytest.mark.slow
@needs_compiler
def test_compiled_code_computes_what_torch_does(real: UNet2DConditionModel) -> None:
    actual = predict(real)
    expected = by_torch(real, lambda: predict(real))
    assert error(actual, expected) < 1e-4
    assert not torch.equal(actual, expected), "torch has computed this"
    assert torch.equal(predict(real), actual)


@pytest.mark.slow
@needs_compiler
def test_weights_count_as_they_are_now_and_none_is_left_behind(real: UNet2DConditionModel) -> None:
    seen = [predict(real)]

    def check() -> None:
        seen.append(predict(real))
        assert error(seen[-1], by_torch(real, lambda: predict(real))) < 1e-4
        assert error(seen[-1], seen[-2]) > 1e-3

    add(real, "a", lora(real))
    fuse(real)
    check()
    unfuse(real)
    remove(real)
    check()
    with torch.no_grad():
        real.conv_in.weight.mul_(2)
    check()
    with torch.no_grad():
        real.conv_out.bias.add_(1)  # short ones are what the compiler likes to put into code
    check()
    array = np.random.randn(*real.conv_out.weight.shape).astype(np.float32)
    alive = weakref.ref(array)
    real.conv_out.weight.data = torch.from_numpy(array)
    del array
    check()
    assert alive() is not None
    real.conv_out.weight.data = torch.randn_like(real.conv_out.weight)
    assert alive() is None, "compiled code kept weights that the network has given up"
    check()
    engine: Any = real.engine
    (code,) = engine._codes.values()
    here = {name: t.data_ptr() for name, t in real.state_dict().items()}
    assert code._addresses == here, "it reads the weights where they are, and all of them"


@pytest.mark.slow
@needs_compiler
def test_another_process_loads_the_code_and_traces_nothing(
    real: UNet2DConditionModel, folder: Path, tmp_path: Path
) -> None:
    answer = tmp_path / "answer.pt"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", ELSEWHERE, folder, answer], cwd=root, check=True)
    assert torch.equal(torch.load(answer, weights_only=True), predict(real))


@pytest.mark.slow
@needs_compiler
def test_threads_share_compiled_code(real: UNet2DConditionModel) -> None:
    inputs = [torch.randn_like(LATENTS) for _ in range(6)]
    expected = [predict(real, latents) for latents in inputs]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda latents: predict(real, latents), inputs))
    assert all(torch.equal(a, b) for a, b in zip(answers, expected, strict=True))
