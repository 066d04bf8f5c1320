"""Schedulers against diffusers: random configurations, every step of every run."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import sfumato.schedulers as ours
from sfumato.diffusion.denoise import denoise
from sfumato.diffusion.foreign import SchedulerRun, accepted_options
from sfumato.diffusion.noise import GeneratorNoise

theirs = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

RAMPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def network(x: torch.Tensor, timestep: torch.Tensor, context: Any = None) -> torch.Tensor:
    """A smooth answer that depends on everything, about as large as noise."""
    shift = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
    return torch.tanh(0.8 * x + shift + float(timestep) / 700) + 0.3 * torch.roll(x, 1, -1).sin()


class Draw:
    """Random choices with a seed, so that a failing case can be run alone."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def one(self, *values: Any) -> Any:
        return self.random.choice(values)

    def flag(self, chance: float = 0.5) -> bool:
        return self.random.random() < chance

    def betas(self, *, sigmoid: bool = False) -> dict[str, Any]:
        schedules = ["linear", "scaled_linear", "squaredcos_cap_v2"]
        start, end = self.one((0.00085, 0.012), (0.0001, 0.02), (0.0015, 0.0195))
        values: dict[str, Any] = {
            "beta_start": start,
            "beta_end": end,
            "beta_schedule": self.one(*schedules, *(["sigmoid"] if sigmoid else [])),
            "num_train_timesteps": self.one(1000, 1000, 500, 100),
        }
        if self.flag(0.1):
            n = values["num_train_timesteps"]
            values["trained_betas"] = np.linspace(0.001, 0.015, n).tolist()
        return values

    def spacing(self) -> dict[str, Any]:
        return {"timestep_spacing": self.one(*SPACINGS), "steps_offset": self.one(0, 1)}

    def ramp(self, *more: str) -> dict[str, Any]:
        return {self.one(*RAMPS, *more): True} if self.flag(0.6) else {}

    def limits(self) -> dict[str, Any]:
        return {
            "clip_sample": self.flag(),
            "clip_sample_range": self.one(1.0, 2.5),
            **self.threshold(),
        }

    def threshold(self) -> dict[str, Any]:
        return {
            "thresholding": self.flag(0.25),
            "dynamic_thresholding_ratio": self.one(0.995, 0.9),
            "sample_max_value": self.one(1.0, 1.5),
        }

    def steps(self, train_steps: int) -> int:
        few = self.random.randint(1, 12)
        return min(self.one(few, few, few, self.random.randint(10, 100)), train_steps - 2)


def pndm(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    prediction = {"prediction_type": d.one(*PREDICTIONS[:2])}
    flags = {"skip_prk_steps": d.flag(0.6), "set_alpha_to_one": d.flag()}
    return {**d.betas(), **d.spacing(), **prediction, **flags}, {}


def ddim(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(), **d.spacing(), **d.limits(), "set_alpha_to_one": d.flag()}
    prediction = {"prediction_type": d.one(*PREDICTIONS)}
    if prediction["prediction_type"] == "v_prediction":
        config["rescale_betas_zero_snr"] = d.flag()
    options = {"eta": d.one(0.0, 0.0, 0.4, 1.0), "use_clipped_model_output": d.flag(0.3)}
    return config | prediction, options


def ddpm(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(sigmoid=True), **d.spacing(), **d.limits()}
    config["prediction_type"] = d.one(*PREDICTIONS)
    config["variance_type"] = d.one("fixed_small", "fixed_small_log", "fixed_large")
    return config, {}


def euler(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(), **d.spacing(), **d.ramp(), "prediction_type": d.one(*PREDICTIONS)}
    config["interpolation_type"] = d.one("linear", "linear", "log_linear")
    config["final_sigmas_type"] = d.one("zero", "sigma_min")
    config["timestep_type"] = d.one("discrete", "discrete", "continuous")
    config["rescale_betas_zero_snr"] = d.flag(0.2)
    if d.flag(0.2):
        config |= {"sigma_min": 0.05, "sigma_max": 12.0}
    churn = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 9.0, "s_noise": 1.003}
    return config, churn if d.flag(0.25) else {}


def euler_ancestral(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(), **d.spacing(), "prediction_type": d.one(*PREDICTIONS[:2])}
    config["rescale_betas_zero_snr"] = d.flag(0.2)
    return config, {}


def dpm_multistep(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    algorithm = d.one("dpmsolver++", "dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
    config = {**d.betas(), **d.spacing(), **d.ramp("use_lu_lambdas"), **d.threshold()}
    config |= {
        "algorithm_type": algorithm,
        "solver_order": d.one(1, 2, 3) if algorithm != "sde-dpmsolver" else d.one(1, 2),
        "solver_type": d.one("midpoint", "heun"),
        "prediction_type": d.one(*PREDICTIONS),
        "lower_order_final": d.flag(0.7),
        "euler_at_final": d.flag(0.3),
        "final_sigmas_type": d.one("zero", "sigma_min") if "++" in algorithm else "sigma_min",
        "rescale_betas_zero_snr": d.flag(0.15),
    }
    if config["beta_schedule"] == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = -5.1
    return config, {}


def unipc(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(), **d.spacing(), **d.ramp(), **d.threshold()}
    config |= {
        "solver_order": d.one(1, 2, 2, 3, 4),
        "solver_type": d.one("bh1", "bh2"),
        "predict_x0": d.flag(0.7),
        "prediction_type": d.one(*PREDICTIONS),
        "lower_order_final": d.flag(0.8),
        "disable_corrector": d.one([], [], [0], [0, 2, 3]),
        "final_sigmas_type": d.one("zero", "sigma_min"),
        "rescale_betas_zero_snr": d.flag(0.15),
    }
    return config, {}


def lcm(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(), **d.limits(), "prediction_type": d.one(*PREDICTIONS)}
    return config | {"set_alpha_to_one": d.flag(), "original_inference_steps": 50}, {}


def tcd(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    return lcm(d)[0], {"eta": d.one(0.0, 0.3, 0.7, 1.0)}


def lms(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(), **d.spacing(), **d.ramp(), "prediction_type": d.one(*PREDICTIONS)}
    return config, {"order": d.one(1, 2, 3, 4, 4)}


def heun(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    clip = {"clip_sample": d.flag(0.3), "clip_sample_range": 1.5}
    return lms(d)[0] | clip, {}


def kdpm2(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = lms(d)[0] | {"prediction_type": d.one(*PREDICTIONS[:2])}
    if config["beta_schedule"] == "squaredcos_cap_v2":
        config["beta_schedule"] = "linear"  # a first sigma of 20000 magnifies any rounding
    return config, {}


def deis(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(), **d.spacing(), **d.ramp(), **d.threshold()}
    config["prediction_type"] = d.one(*PREDICTIONS)
    return config | {"solver_order": d.one(1, 2, 3), "lower_order_final": d.flag()}, {}


def dpm_singlestep(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    algorithm = d.one("dpmsolver++", "dpmsolver++", "dpmsolver")
    config = {**d.betas(), **d.ramp(), **(d.threshold() if "++" in algorithm else {})}
    config |= {
        "algorithm_type": algorithm,
        "solver_order": d.one(1, 2, 3),
        "solver_type": d.one("midpoint", "heun"),
        "prediction_type": d.one(*PREDICTIONS),
        "lower_order_final": d.flag(),
        "final_sigmas_type": d.one("zero", "sigma_min") if "++" in algorithm else "sigma_min",
    }
    if config["beta_schedule"] == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = -5.1
    return config, {}


KINDS = {
    "PNDMScheduler": pndm,
    "DDIMScheduler": ddim,
    "DDPMScheduler": ddpm,
    "EulerDiscreteScheduler": euler,
    "EulerAncestralDiscreteScheduler": euler_ancestral,
    "DPMSolverMultistepScheduler": dpm_multistep,
    "UniPCMultistepScheduler": unipc,
    "LCMScheduler": lcm,
    "TCDScheduler": tcd,
    "LMSDiscreteScheduler": lms,
    "HeunDiscreteScheduler": heun,
    "KDPM2DiscreteScheduler": kdpm2,
    "KDPM2AncestralDiscreteScheduler": kdpm2,
    "DEISMultistepScheduler": deis,
    "DPMSolverSinglestepScheduler": dpm_singlestep,
}
CASES = [(name, seed) for name in KINDS for seed in range(16)]


class InDouble:
    """Stands for `torch` inside a module of the oracle, and makes it compute in float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class NumPyInDouble(InDouble):
    """The same for `numpy`."""

    float32 = np.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def pair(name: str, seed: int) -> tuple[Any, Any, dict[str, Any], int]:
    """The same configuration as our scheduler and theirs, options for step, number of steps."""
    d = Draw(1000 * seed + len(name))
    config, options = KINDS[name](d)
    mine, other = getattr(ours, name)(**config), getattr(theirs, name)(**config)
    train_steps = config["num_train_timesteps"]
    steps = d.steps(train_steps)
    if len(np.arange(train_steps, 0, -train_steps / steps)) > steps:
        steps -= 1  # else their trailing timesteps run on to -1
    if name == "PNDMScheduler" and not config["skip_prk_steps"]:
        steps = max(steps, 4)
    if name in ("LCMScheduler", "TCDScheduler"):
        steps = min(steps, 30)
    if config.get("rescale_betas_zero_snr") or config["beta_schedule"] == "sigmoid":
        share_table(mine, other)
    mine.set_timesteps(steps)
    other.set_timesteps(steps)
    if len(mine.timesteps) > 1 and mine.timesteps[0] == mine.timesteps[1]:
        other.set_begin_index(0)  # else theirs begins with the second step
    return mine, other, options, steps


def share_table(mine: Any, other: Any) -> None:
    """Let both use one training table.

    Rescaling subtracts nearly equal numbers, and torch's float32 square root and sigmoid differ
    from processor to processor in the last bit.
    """
    table = other.alphas_cumprod.float()
    torch.testing.assert_close(mine.alphas_cumprod, table, rtol=5e-5, atol=1e-7)
    mine._acp = table.double().numpy()
    mine._sigma_table = (((1 - table) / table) ** 0.5).double().numpy()
    mine.alphas_cumprod = table
    if hasattr(mine, "_final") and not mine.config.set_alpha_to_one:
        mine._final = float(table[0])


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def widen(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the oracle compute in float64 with its float32 tables."""
    for table in (
        "sigmas",
        "sigmas_interpol",
        "sigmas_up",
        "sigmas_down",
        "alphas_cumprod",
        "final_alpha_cumprod",
        "one",
    ):
        if hasattr(other, table):
            setattr(other, table, getattr(other, table).double())
    monkeypatch.setattr(sys.modules[type(other).__module__], "torch", InDouble())


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


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in KINDS for seed in (3, 11, 19)])
def test_the_loop_the_class_and_a_foreign_scheduler_agree(name: str, seed: int) -> None:
    mine, other, options, steps = pair(name, seed)
    start = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    start = start * mine.init_noise_sigma
    table = mine.plan(**accepted_options(mine.plan, options))
    assert len(table) == len(mine.timesteps)
    by_step = SchedulerRun(mine, generator=torch.Generator().manual_seed(7), **options)
    noise = GeneratorNoise(torch.Generator().manual_seed(7))
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


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("start", [1, 4])
def test_a_run_that_begins_in_the_middle_is_as_in_diffusers(name: str, start: int) -> None:
    mine, other = getattr(ours, name)(**SD), getattr(theirs, name)(**SD)
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


@pytest.mark.parametrize("name", KINDS)
def test_noising_and_velocity_are_as_in_diffusers(name: str) -> None:
    mine, other = getattr(ours, name)(**SD), getattr(theirs, name)(**SD)
    image, noise = torch.randn(2, 6, 2, 3, 3)
    for steps in (None, 20):
        if steps is not None:
            mine.set_timesteps(steps)
            other.set_timesteps(steps)
        places = torch.tensor([0, 2, 3, 9, 13, 19])
        if other.timesteps is None:
            continue
        timesteps = other.timesteps[places]
        torch.testing.assert_close(
            mine.add_noise(image, noise, mine.timesteps[places] if steps else timesteps),
            other.add_noise(image, noise, timesteps),
        )
        assert hasattr(other, "get_velocity") <= hasattr(mine, "get_velocity")
        if hasattr(other, "get_velocity"):
            velocity = other.get_velocity(image, noise, timesteps)
            torch.testing.assert_close(mine.get_velocity(image, noise, timesteps), velocity)


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
]


@pytest.mark.parametrize(("name", "arguments"), CUSTOM)
def test_ways_chosen_by_hand_are_as_in_diffusers(name: str, arguments: dict[str, Any]) -> None:
    mine, other = getattr(ours, name)(**SD), getattr(theirs, name)(**SD)
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
    assert mine.num_inference_steps == other.num_inference_steps or name == "DDPMScheduler"
