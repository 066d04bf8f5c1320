"""Random configurations of schedulers, and the oracle's schedulers beside ours."""

from __future__ import annotations

import random
import sys
from typing import Any

import diffusers as theirs
import numpy as np
import pytest
import torch

import sfumato.schedulers as ours

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

    def prediction(self, *more: str) -> dict[str, Any]:
        return {"prediction_type": self.one(*PREDICTIONS, *more), "flow_shift": self.one(1.0, 3.0)}

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
    config |= d.prediction(*(["flow_prediction"] if "++" in algorithm else []))
    config |= {
        "algorithm_type": algorithm,
        "solver_order": d.one(1, 2, 3) if algorithm != "sde-dpmsolver" else d.one(1, 2),
        "solver_type": d.one("midpoint", "heun"),
        "lower_order_final": d.flag(0.7),
        "euler_at_final": d.flag(0.3),
        "final_sigmas_type": d.one("zero", "sigma_min") if "++" in algorithm else "sigma_min",
        "rescale_betas_zero_snr": d.flag(0.15),
    }
    if config["beta_schedule"] == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = -5.1
    return config, {}


def unipc(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(), **d.spacing(), **d.ramp("use_flow_sigmas"), **d.threshold()}
    predict_x0 = d.flag(0.7)
    config |= d.prediction(*(["flow_prediction"] if predict_x0 else []))
    config |= {
        "solver_order": d.one(1, 2, 2, 3, 4),
        "solver_type": d.one("bh1", "bh2"),
        "predict_x0": predict_x0,
        "lower_order_final": d.flag(0.8),
        "disable_corrector": d.one([], [], [0], [0, 2, 3]),
        "final_sigmas_type": d.one("zero", "sigma_min"),
        "rescale_betas_zero_snr": d.flag(0.15),
    }
    if not config["lower_order_final"] and config["final_sigmas_type"] == "zero":
        config["solver_order"] = min(config["solver_order"], 2)  # theirs has no solution for more
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
    config = {**d.betas(), **d.spacing(), **d.ramp("use_flow_sigmas"), **d.threshold()}
    config |= d.prediction(*([] if config["thresholding"] else ["flow_prediction"]))
    return config | {"solver_order": d.one(1, 2, 3), "lower_order_final": d.flag()}, {}


def dpm_singlestep(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    algorithm = d.one("dpmsolver++", "dpmsolver++", "dpmsolver", "sde-dpmsolver++")
    config = {**d.betas(), **d.ramp(), **(d.threshold() if "++" in algorithm else {})}
    config |= d.prediction(*(["flow_prediction"] if "++" in algorithm else []))
    config |= {
        "algorithm_type": algorithm,
        "solver_order": d.one(1, 2, 3),
        "solver_type": d.one("midpoint", "heun"),
        "lower_order_final": d.flag(),
        "final_sigmas_type": d.one("zero", "sigma_min") if "++" in algorithm else "sigma_min",
    }
    if config["beta_schedule"] == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = -5.1
    return config, {}


def sa_solver(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    algorithm = d.one("data_prediction", "data_prediction", "noise_prediction")
    config = {**d.betas(), **d.spacing(), **d.ramp()}
    config |= d.threshold() if algorithm == "data_prediction" else {}
    config |= {
        "algorithm_type": algorithm,
        "predictor_order": d.one(1, 2, 2, 3, 4),
        "corrector_order": d.one(1, 2, 2, 3, 4),
        "prediction_type": d.one(*PREDICTIONS),
        "lower_order_final": d.flag(0.8),
        "tau_func": d.one(None, None, half_random),
    }
    if config["beta_schedule"] == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = -5.1
    return config, {}


def half_random(timestep: float) -> float:
    return 0.5 + float(timestep) / 2000


def dpm_sde(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = kdpm2(d)[0]
    return config | {"noise_sampler_seed": d.one(0, 7, [3, 2**40])}, {"s_noise": d.one(1.0, 0.9)}


def edm(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {
        "sigma_min": d.one(0.002, 0.03),
        "sigma_max": d.one(80.0, 14.6),
        "sigma_data": d.one(0.5, 1.0),
        "sigma_schedule": d.one("karras", "exponential"),
        "prediction_type": d.one(*PREDICTIONS[:2]),
        "rho": d.one(7.0, 5.0),
        "final_sigmas_type": d.one("zero", "sigma_min"),
        "num_train_timesteps": d.one(1000, 200),
    }
    churn = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 9.0, "s_noise": 1.003}
    return config, churn if d.flag(0.4) else {}


def edm_dpm(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    algorithm = d.one("dpmsolver++", "sde-dpmsolver++")
    config = edm(d)[0] | d.threshold()
    return config | {
        "algorithm_type": algorithm,
        "solver_order": d.one(1, 2, 3) if algorithm == "dpmsolver++" else d.one(1, 2),
        "solver_type": d.one("midpoint", "heun"),
        "lower_order_final": d.flag(0.7),
        "euler_at_final": d.flag(0.3),
    }, {}


def ipndm(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"num_train_timesteps": d.one(1000, 200)}, {}


def ddim_inverse(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {**d.betas(), "steps_offset": d.one(0, 1), "prediction_type": d.one(*PREDICTIONS[::2])}
    config |= {"timestep_spacing": d.one("leading", "trailing"), "clip_sample": d.flag()}
    # With no noise to begin with, a network that predicts the picture does not know the noise.
    return config | {"set_alpha_to_one": config["prediction_type"] == "epsilon" and d.flag()}, {}


def dpm_inverse(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    algorithm = d.one("dpmsolver++", "dpmsolver++", "dpmsolver")
    config = {**d.betas(), **d.spacing(), **d.ramp(), **d.threshold()}
    config |= {
        "algorithm_type": algorithm,
        "solver_order": d.one(1, 2, 3),
        "solver_type": d.one("midpoint", "heun"),
        "prediction_type": d.one(*PREDICTIONS),
        "lower_order_final": d.flag(0.7),
        "euler_at_final": d.flag(0.3),
    }
    if config["beta_schedule"] == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = -5.1
    return config, {}


def consistency_models(d: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {
        "num_train_timesteps": d.one(40, 151),
        "sigma_min": d.one(0.002, 0.03),
        "sigma_max": d.one(80.0, 14.6),
        "sigma_data": d.one(0.5, 1.0),
        "s_noise": d.one(1.0, 0.9),
        "rho": d.one(7.0, 5.0),
        "clip_denoised": d.flag(),
    }
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
    "SASolverScheduler": sa_solver,
    "DPMSolverSDEScheduler": dpm_sde,
    "EDMEulerScheduler": edm,
    "EDMDPMSolverMultistepScheduler": edm_dpm,
    "IPNDMScheduler": ipndm,
    "DDIMInverseScheduler": ddim_inverse,
    "DPMSolverMultistepInverseScheduler": dpm_inverse,
    "DDIMParallelScheduler": ddim,
    "DDPMParallelScheduler": ddpm,
    "CMStochasticIterativeScheduler": consistency_models,
}


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
    if config.get("rescale_betas_zero_snr") or config.get("beta_schedule") == "sigmoid":
        share_table(mine, other)
    if name == "DPMSolverMultistepInverseScheduler" and config.get("use_exponential_sigmas"):
        steps = min(steps, 12)  # else theirs begins with the second of two steps at timestep 0
    mine.set_timesteps(steps)
    other.set_timesteps(steps)
    twice = len(mine.timesteps) > 1 and mine.timesteps[0] == mine.timesteps[1]
    if twice and hasattr(other, "set_begin_index"):
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
