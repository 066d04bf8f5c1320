"""Schedulers against diffusers: random configurations, every step of every run."""

from __future__ import annotations

import copy
import inspect
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import sfumato.schedulers as ours
from sfumato.diffusion.denoise import denoise
from sfumato.diffusion.foreign import SchedulerRun, accepted_options
from sfumato.diffusion.noise import GeneratorNoise, NoiseSource

theirs = pytest.importorskip("diffusers")
from tests.parity.scheduler_kinds import KINDS, NumPyInDouble, network, pair, widen  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

CASES = [(name, seed) for name in KINDS for seed in range(10)]


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "seed"), CASES)
def test_every_step_of_a_random_configuration_is_as_in_diffusers(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other, options, steps = pair(name, seed)
    if name == "KDPM2AncestralDiscreteScheduler":
        # In float32 theirs loses most digits of the sigma that a step goes down to.
        widen(other, monkeypatch)
        monkeypatch.setattr(sys.modules[type(other).__module__], "np", NumPyInDouble())
        other.set_timesteps(steps)
    assert mine.timesteps.is_floating_point() == other.timesteps.is_floating_point()
    torch.testing.assert_close(
        mine.timesteps.double(), other.timesteps.double(), atol=1e-4, rtol=1e-6
    )
    assert float(mine.init_noise_sigma) == pytest.approx(float(other.init_noise_sigma), rel=1e-6)
    widen(other, monkeypatch)
    if name == "DPMSolverSDEScheduler":
        mine.sigmas = mine.sigmas.double()  # a Brownian path feels the last digit
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64) * mine.init_noise_sigma
    y = x.clone()
    fixed_noise = "variance_noise" in inspect.signature(other.step).parameters
    random = "generator" in inspect.signature(other.step).parameters
    draws = [torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)]
    for t, u in zip(mine.timesteps, other.timesteps, strict=True):
        seen, expected = mine.scale_model_input(x, t), other.scale_model_input(y, u)
        noise = [{"generator": g} if random else {} for g in draws]
        if fixed_noise:
            noise = [
                {"variance_noise": torch.randn(x.shape, generator=rng, dtype=torch.float32)}
            ] * 2
        got = mine.step(network(seen, t), t, x, **options, **noise[0])
        want = other.step(network(expected, u), u, y, **options, **noise[1])
        x, y = got.prev_sample, want.prev_sample
        assert y.dtype == x.dtype == torch.float64
        if not y.isfinite().all():
            return  # theirs fails here; that ours does not is another test's matter
        size = max(1.0, float(y.abs().max()))
        assert float((x - y).abs().max()) <= 1e-5 * size, (t, mine.config)
        for field in ("pred_original_sample", "denoised", "pred_noised_sample"):
            if getattr(want, field, None) is not None:
                d, e = getattr(got, field), getattr(want, field)
                assert float((d - e).abs().max()) <= 1e-4 * max(1.0, float(e.abs().max()))


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
RANDOM = (
    ("DDIMScheduler", {"clip_sample": False}, {"eta": 0.7}),
    ("DDPMScheduler", {"clip_sample": False}, {}),
    ("EulerDiscreteScheduler", {}, {"s_churn": 2.0}),
    ("EulerAncestralDiscreteScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("LCMScheduler", {}, {}),
    ("TCDScheduler", {}, {"eta": 0.5}),
    ("KDPM2AncestralDiscreteScheduler", {}, {}),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("SASolverScheduler", {}, {}),
)


def generators(several: bool) -> Any:
    seeds = [3, 4, 5] if several else [3]
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made if several else made[0]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("name", "config", "options"), RANDOM)
def test_float32_runs_draw_the_same_numbers_in_the_same_order(
    name: str, config: dict[str, Any], options: dict[str, Any], several: bool
) -> None:
    mine, other = getattr(ours, name)(**SD, **config), getattr(theirs, name)(**SD, **config)
    start = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ends = []
    for scheduler in (mine, other):
        scheduler.set_timesteps(12)
        source, x = generators(several), start * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            answer = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(answer, t, x, **options, generator=source).prev_sample
        assert x.dtype == torch.float32
        ends.append(x)
    torch.testing.assert_close(*ends, atol=1e-4, rtol=1e-4)


class FromPath:
    """The noise of a scheduler with a Brownian path, for the loop."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.calls = copy.deepcopy(scheduler), itertools.count()

    def draw(self, shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
        return self.scheduler._noise(next(self.calls), torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in KINDS for seed in (3, 11, 19)])
def test_the_loop_the_class_and_a_foreign_scheduler_agree(name: str, seed: int) -> None:
    mine, other, options, steps = pair(name, seed)
    start = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    start = start * mine.init_noise_sigma
    table = mine.plan(**accepted_options(mine.plan, options))
    assert len(table) == len(mine.timesteps)
    noise: NoiseSource = GeneratorNoise(torch.Generator().manual_seed(7))
    if name == "DPMSolverSDEScheduler":
        noise = FromPath(mine)
    by_step = SchedulerRun(mine, generator=torch.Generator().manual_seed(7), **options)
    runs = (
        denoise(network, start, None, table, noise=noise, check_finite=False),
        denoise(network, start, None, by_step, check_finite=False),
    )
    for a, b in zip(*runs, strict=True):
        assert a.timestep == b.timestep
        torch.testing.assert_close(a.x, b.x, atol=1e-12, rtol=1e-12, equal_nan=True)
    run = SchedulerRun(other, generator=torch.Generator().manual_seed(7), **options)
    steps = list(denoise(network, start.float(), None, run, check_finite=False))
    assert [s.index for s in steps] == list(range(len(other.timesteps)))


def both(name: str) -> tuple[Any, Any]:
    """Ours and theirs with Stable Diffusion's settings, as far as they have them."""
    known = inspect.signature(getattr(theirs, name)).parameters
    config = {**SD, "noise_sampler_seed": 5}
    config = {key: value for key, value in config.items() if key in known}
    return getattr(ours, name)(**config), getattr(theirs, name)(**config)


NOISED = [name for name in KINDS if hasattr(getattr(theirs, name), "add_noise")]


@pytest.mark.parametrize("name", NOISED)
@pytest.mark.parametrize("start", [1, 4])
def test_a_run_that_begins_in_the_middle_is_as_in_diffusers(name: str, start: int) -> None:
    mine, other = both(name)
    image, noise = torch.randn(2, 1, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    ends = []
    for scheduler in (mine, other):
        scheduler.set_timesteps(10)
        timesteps = scheduler.timesteps[start * scheduler.order :]
        if name == "PNDMScheduler":
            timesteps = scheduler.timesteps[start * 4 :]
        elif hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start * scheduler.order)
        x = scheduler.add_noise(image, noise, timesteps[:1])
        source = {"generator": torch.Generator().manual_seed(7)}
        for t in timesteps:
            answer = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(answer, t, x, **accepted_options(scheduler.step, source))[0]
        ends.append(x)
    torch.testing.assert_close(*ends, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NOISED)
def test_noising_and_velocity_are_as_in_diffusers(name: str) -> None:
    mine, other = both(name)
    image, noise = torch.randn(2, 6, 2, 3, 3)
    for steps in (None, 20):
        if steps is not None:
            mine.set_timesteps(steps)
            other.set_timesteps(steps)
        if other.timesteps is None:
            continue
        places = torch.tensor([0, 2, 3, 9, 13, 19])
        timesteps = [scheduler.timesteps[places] for scheduler in (mine, other)]
        if name == "SASolverScheduler":
            timesteps = [t.long() for t in timesteps]
        torch.testing.assert_close(
            mine.add_noise(image, noise, timesteps[0]), other.add_noise(image, noise, timesteps[1])
        )
        assert hasattr(other, "get_velocity") <= hasattr(mine, "get_velocity")
        if hasattr(other, "get_velocity"):
            velocity = other.get_velocity(image, noise, timesteps[1])
            torch.testing.assert_close(mine.get_velocity(image, noise, timesteps[0]), velocity)


@pytest.mark.parametrize("name", KINDS)
def test_timesteps_are_numbers_of_the_kind_of_diffusers(name: str) -> None:
    for seed in range(4):
        mine, other, _, _ = pair(name, seed)
        assert mine.timesteps.dtype == other.timesteps.dtype


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDPMParallelScheduler"])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_the_noise_is_as_large_as_the_network_says(name: str, variance: str) -> None:
    config = {**SD, "variance_type": variance, "clip_sample": False}
    start, ends = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)), []
    for scheduler in (getattr(ours, name)(**config), getattr(theirs, name)(**config)):
        scheduler.set_timesteps(9)
        x, source = start, torch.Generator().manual_seed(3)
        for t in scheduler.timesteps:
            answer = torch.cat([network(x, t), network(x, t).square().clamp(max=1)], dim=1)
            x = scheduler.step(answer, t, x, generator=source)[0]
        ends.append(x)
    torch.testing.assert_close(*ends, atol=1e-5, rtol=1e-5)


def test_a_network_that_says_a_negative_variance_adds_no_noise() -> None:
    scheduler = ours.DDPMScheduler(variance_type="learned", clip_sample=False)
    scheduler.set_timesteps(5)
    x = torch.randn(1, 4, 6, 6)
    ends = [
        scheduler.step(torch.cat([x, y], dim=1), scheduler.timesteps[0], x)[0]
        for y in (-x.abs() - 1, torch.zeros_like(x))
    ]
    assert torch.equal(*ends)


def test_a_step_counter_set_back_by_hand_begins_a_new_run() -> None:
    scheduler = ours.DPMSolverMultistepScheduler(**SD)
    scheduler.set_timesteps(8)
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    runs = []
    for start in (0, 3, 3):
        scheduler._step_index = None
        y = x
        for t in scheduler.timesteps[start:]:
            y = scheduler.step(network(y, t), t, y)[0]
        runs.append(y)
    fresh = ours.DPMSolverMultistepScheduler(**SD)
    fresh.set_timesteps(8)
    fresh._init_step_index(fresh.timesteps[3])
    assert fresh.step_index == 3
    for t in fresh.timesteps[3:]:
        x = fresh.step(network(x, t), t, x)[0]
    assert torch.equal(runs[1], x)
    assert torch.equal(runs[2], x)


#: Theirs do not say how many steps they were given by hand.
NOT_COUNTED = ("DDPMScheduler", "EDMEulerScheduler", "CMStochasticIterativeScheduler")
CUSTOM = [
    ("DDPMScheduler", {"timesteps": [900, 601, 350, 7]}),
    (
        "EulerDiscreteScheduler",
        {"timesteps": theirs.schedulers.AysSchedules["StableDiffusionTimesteps"]},
    ),
    ("EulerDiscreteScheduler", {"sigmas": theirs.schedulers.AysSchedules["StableDiffusionSigmas"]}),
    ("DPMSolverMultistepScheduler", {"timesteps": [999, 850, 736, 645, 24, 3]}),
    ("LCMScheduler", {"timesteps": [999, 759, 499, 259]}),
    ("LCMScheduler", {"timesteps": [799, 699, 499, 259], "strength": 0.5}),
    ("LCMScheduler", {"num_inference_steps": 6, "strength": 0.8}),
    ("LCMScheduler", {"num_inference_steps": 6, "original_inference_steps": 100}),
    ("TCDScheduler", {"num_inference_steps": 6, "original_inference_steps": 100}),
    ("TCDScheduler", {"num_inference_steps": 6, "strength": 0.6}),
    ("EDMEulerScheduler", {"sigmas": torch.tensor([0.0, 0.2, 0.35, 0.8, 1.0])}),
    ("CMStochasticIterativeScheduler", {"timesteps": [39, 30, 12, 3, 0]}),
]


@pytest.mark.parametrize(("name", "arguments"), CUSTOM)
def test_ways_chosen_by_hand_are_as_in_diffusers(name: str, arguments: dict[str, Any]) -> None:
    mine, other = both(name)
    start, ends = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), []
    for scheduler in (mine, other):
        scheduler.set_timesteps(**arguments)
        x, source = start * scheduler.init_noise_sigma, {"generator": generators(False)}
        for t in scheduler.timesteps:
            answer = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(answer, t, x, **accepted_options(scheduler.step, source))[0]
        ends.append(x)
    torch.testing.assert_close(mine.timesteps, other.timesteps)
    torch.testing.assert_close(*ends, atol=1e-4, rtol=1e-4)
    assert mine.num_inference_steps == other.num_inference_steps or name in NOT_COUNTED


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_predicted_noise_means_a_clipped_picture_even_without_any_signal(name: str) -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": True}
    mine, other = getattr(ours, name)(**config), getattr(theirs, name)(**config)
    start, ends = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), []
    for scheduler in (mine, other):
        scheduler.set_timesteps(5)
        x, source = start, {"generator": generators(False)}
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x, **accepted_options(scheduler.step, source))[0]
        ends.append(x)
    torch.testing.assert_close(*ends, atol=1e-4, rtol=1e-4)
