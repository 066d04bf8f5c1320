"""k-diffusion's samplers, schedules and Brownian tree against k-diffusion itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.diffusion.brownian import BrownianPath
from sfumato.diffusion.denoise import denoise
from sfumato.diffusion.noise import GeneratorNoise
from sfumato.diffusion.samplers.named import NAMED
from sfumato.diffusion.schedule import SIGMA_RAMPS, TABLE_SCHEDULES, log_table, timestep_at
from sfumato.schedulers.dpm_adaptive import DPMAdaptiveScheduler
from sfumato.schedulers.k_diffusion import KDiffusionScheduler
from tests.parity.k_diffusion_alone import load

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (2, 3, 4, 5)
ADDED = {name for name in NAMED if NAMED[name].wants_negative} | {
    "heunpp2", "ipndm_v", "gradient_estimation", "res_multistep", "res_multistep_ancestral",
    "er_sde", "restart",
}  # fmt: skip
THEIRS = {"ipndm", "lcm", "dpmpp_2m_sde_heun", "dpm_fast", *ADDED}  # by another name, or not


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(x: torch.Tensor, t: torch.Tensor, context: Any = None) -> torch.Tensor:
    return torch.tanh(0.8 * x + float(t) / 700) + 0.3 * torch.roll(x, 1, -1).sin()


class Denoiser:
    """k-diffusion's view of the network: from x over sigma to the picture."""

    def __init__(self, scheduler: KDiffusionScheduler) -> None:
        self.table, self.v = scheduler._sigma_table, scheduler.config.prediction_type[0] == "v"

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = float(sigma[0])
        time = timestep_at(np.array([s]), self.table)[0]
        answer = network(x / (s**2 + 1) ** 0.5, torch.tensor(np.float32(time)))
        if self.v:
            return x / (s**2 + 1) - answer * s / (s**2 + 1) ** 0.5
        return x - s * answer


def in_turn(sigma: Any = None, sigma_next: Any = None) -> torch.Tensor:
    """Noise that is the same for every call: what the increments are is not in question here."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


class Constant:
    def draw(self, shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
        return in_turn()


def ours(scheduler: KDiffusionScheduler, x: torch.Tensor, noise: Any) -> torch.Tensor:
    for step in denoise(network, x, None, scheduler.plan(), noise=noise):
        x = step.x
    return x


CASES = [(name, seed) for name in NAMED if name not in THEIRS for seed in range(4)]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "seed"), CASES)
def test_a_run_ends_as_in_k_diffusion(name: str, seed: int) -> None:
    sampling, rng = load("sampling"), np.random.default_rng(seed)
    scheduler = KDiffusionScheduler(
        sampler=name,
        schedule=rng.choice([*SIGMA_RAMPS, *TABLE_SCHEDULES]),
        eta=float(rng.choice([1.0, 1.0, 0.6, 0.0])),
        s_noise=float(rng.choice([1.0, 1.003])),
        prediction_type=str(rng.choice(["epsilon", "v_prediction"])),
    )
    steps = int(rng.integers(1, 30))
    sigmas = torch.from_numpy(scheduler._spread(steps).astype(np.float32)).double()
    scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * float(sigmas[0])
    sampler, options = getattr(sampling, f"sample_{name}"), {}
    if NAMED[name].noisy:
        options = {"eta": scheduler.config.eta, "s_noise": scheduler.config.s_noise}
        options["noise_sampler"] = in_turn
    if name == "dpmpp_sde":
        options["noise_sampler"] = from_path(sigmas)
    want = sampler(Denoiser(scheduler), x, sigmas, disable=True, **options)
    noise = Along(scheduler) if name == "dpmpp_sde" else Constant()
    torch.testing.assert_close(ours(scheduler, x, noise), want, atol=1e-5, rtol=1e-5)


def path(sigmas: torch.Tensor) -> BrownianPath:
    return BrownianPath(SHAPE, float(sigmas[-2]), float(sigmas[0]), 11, dtype=torch.float64)


def from_path(sigmas: torch.Tensor) -> Any:
    known = path(sigmas)
    return lambda start, end: known.noise(round(float(start), 6), round(float(end), 6))


class Along:
    """The path's increments between the calls, one after the other."""

    def __init__(self, scheduler: KDiffusionScheduler) -> None:
        assert scheduler._way is not None
        start, end = scheduler._way.now.ratio, scheduler._way.next.ratio
        start, end = (np.round(sigma, 6).tolist() for sigma in (start, end))
        self.path, self.pairs = path(scheduler.sigmas.double()), iter(zip(start, end, strict=True))

    def draw(self, shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
        return self.path.noise(*next(self.pairs))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12, 20])
def test_dpm_fast_ends_as_in_k_diffusion(steps: int) -> None:
    sampling, scheduler = load("sampling"), KDiffusionScheduler(sampler="dpm_fast")
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    high, low = float(scheduler.sigmas[0]), float(scheduler.sigmas[-1])
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * high
    want = sampling.sample_dpm_fast(Denoiser(scheduler), x, low, high, steps, disable=True)
    torch.testing.assert_close(ours(scheduler, x, None), want, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("double")
def test_the_heun_kind_of_2m_sde_ends_as_in_k_diffusion() -> None:
    sampling, scheduler = load("sampling"), KDiffusionScheduler(sampler="dpmpp_2m_sde_heun")
    scheduler.set_timesteps(9)
    sigmas = scheduler.sigmas.double()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * float(sigmas[0])
    options = {"noise_sampler": in_turn, "solver_type": "heun", "disable": True}
    want = sampling.sample_dpmpp_2m_sde(Denoiser(scheduler), x, sigmas, **options)
    torch.testing.assert_close(ours(scheduler, x, Constant()), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 10, 33])
def test_schedules_are_those_of_k_diffusion(steps: int) -> None:
    sampling, external = load("sampling"), load("external")
    made = {name: KDiffusionScheduler(schedule=name) for name in (*SIGMA_RAMPS, *TABLE_SCHEDULES)}
    for scheduler in made.values():
        scheduler.set_timesteps(steps)
    table = torch.from_numpy(made["karras"]._sigma_table).float()
    low, high = float(table[0]), float(table[-1])
    model = external.DiscreteSchedule(table, quantize=False)
    wanted = {
        "karras": sampling.get_sigmas_karras(steps, low, high),
        "exponential": sampling.get_sigmas_exponential(steps, low, high),
        "polyexponential": sampling.get_sigmas_polyexponential(steps, low, high),
        "uniform": model.get_sigmas(steps),
    }
    for name, sigmas in wanted.items():
        torch.testing.assert_close(made[name].sigmas, sigmas, atol=1e-5, rtol=2e-5)
        times = model.sigma_to_t(sigmas[:-1])
        torch.testing.assert_close(made[name].timesteps, times, atol=0.02, rtol=1e-4)
        whole = KDiffusionScheduler(schedule=name, quantize=True)
        whole.set_timesteps(steps)
        assert whole.timesteps.tolist() == model.sigma_to_t(sigmas[:-1], quantize=True).tolist()


def test_table_schedules_go_from_the_noisiest_level_down() -> None:
    scheduler = KDiffusionScheduler(schedule="sgm_uniform")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.round().tolist() == [999.0, 749.0, 500.0, 250.0]
    simple = KDiffusionScheduler(schedule="simple")
    simple.set_timesteps(4)
    assert simple.timesteps.tolist() == pytest.approx([999, 749, 499, 249], abs=1e-3)
    steps = KDiffusionScheduler(schedule="align_your_steps")
    steps.set_timesteps(11)
    assert steps.sigmas[[0, 5, -2]].tolist() == pytest.approx([14.615, 1.396, 0.029])
    assert log_table(scheduler._sigma_table).shape == (1000,)


@pytest.mark.parametrize("seed", [0, 7, 2**62, [3, 2**40]])
def test_a_brownian_path_is_that_of_torchsde(seed: Any) -> None:
    sampling = load("sampling")
    x = torch.zeros(SHAPE)
    theirs = sampling.BrownianTreeNoiseSampler(x, 0.0292, 14.6146, seed)
    mine = BrownianPath(SHAPE, 0.0292, 14.6146, seed)
    for start, end in [(14.6146, 3.5), (3.5, 1.25), (9.0, 0.5), (0.03, 0.0292), (0.1, 0.10001)]:
        torch.testing.assert_close(
            mine.noise(start, end),
            theirs(torch.tensor(start).double(), torch.tensor(end).double()).float(),
            atol=1e-3 if start - end < 1e-3 else 2e-5,
            rtol=1e-4,
        )


def test_a_brownian_path_has_independent_parts_of_the_right_size() -> None:
    walk = BrownianPath((40_000,), 0.0, 4.0, 5)
    parts = [walk.increment(a, b) for a, b in [(0.0, 1.0), (1.0, 1.5), (1.5, 4.0)]]
    for part, length in zip(parts, (1.0, 0.5, 2.5), strict=True):
        assert float(part.var()) == pytest.approx(length, rel=0.05)
    correlations = torch.corrcoef(torch.stack(parts)) - torch.eye(3)
    assert float(correlations.abs().max()) < 0.03
    torch.testing.assert_close(sum(parts), walk.increment(0.0, 4.0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(walk.increment(9.0, 1.5), -parts[2])


def test_noise_of_the_loop_has_the_size_that_the_path_gives() -> None:
    scheduler = KDiffusionScheduler(sampler="dpmpp_sde")
    scheduler.set_timesteps(6)
    noise = GeneratorNoise(torch.Generator().manual_seed(0))
    x = torch.zeros(1, 1, 200, 200) + noise.draw((1, 1, 200, 200), torch.float32, "cpu") * 14.6146

    def only_noise(x: torch.Tensor, t: torch.Tensor, context: Any) -> torch.Tensor:
        return x * (float(scheduler.sigmas[calls.pop(0)]) ** 2 + 1) ** 0.5 / sizes.pop(0)

    calls = list(range(len(scheduler.timesteps)))
    sizes = scheduler.sigmas[: len(calls)].tolist()
    plan, spreads = scheduler.plan(), []
    for step in denoise(only_noise, x, None, plan, noise=noise):
        spreads.append(float(step.x.std()))
    ends = scheduler._way.next.ratio if scheduler._way is not None else []
    assert spreads[1::2] == pytest.approx(ends[1::2], rel=0.02)


ADAPTIVE: list[dict[str, Any]] = [
    {},
    {"order": 2},
    {"rtol": 0.01, "pcoeff": 0.2, "dcoeff": 0.1},
    {"h_init": 3.0},
    {"prediction_type": "v_prediction", "atol": 1e-3},
    {"eta": 1.0, "s_noise": 1.01},
    {"eta": 0.5, "order": 2, "accept_safety": 0.9},
]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", ADAPTIVE, ids=str)
def test_dpm_adaptive_ends_as_in_k_diffusion(settings: dict[str, Any]) -> None:
    sampling, scheduler = load("sampling"), DPMAdaptiveScheduler(**settings)
    scheduler.set_timesteps(10)
    low, high = float(scheduler._sigma_table[0]), float(scheduler.init_noise_sigma)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * high
    options = {name: value for name, value in settings.items() if name != "prediction_type"}
    options |= {"disable": True, "return_info": True, "noise_sampler": in_turn}
    model: Any = Denoiser(scheduler)  # type: ignore[arg-type]
    want, info = sampling.sample_dpm_adaptive(model, x, low, high, **options)
    run = scheduler.run()
    for step in denoise(network, x, None, run, noise=Constant()):
        x = step.x
    torch.testing.assert_close(x, want, atol=1e-5, rtol=1e-5)
    assert len(run) == info["nfe"] - info["n_reject"]  # what is known of the start is kept
