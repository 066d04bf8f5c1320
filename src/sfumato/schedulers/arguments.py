"""Arguments of the schedulers' constructors by place: their order is that of diffusers.

A configuration's fields lie where they are shared, which says nothing of their order. The first
five are the same everywhere: how noise was added in training, or the ends of an EDM schedule.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from sfumato.errors import UnknownKeywordError, did_you_mean

if TYPE_CHECKING:
    from sfumato.schedulers.config import SchedulerConfig

_THRESHOLDING = "thresholding dynamic_thresholding_ratio sample_max_value"
_RAMPS = "use_karras_sigmas use_exponential_sigmas use_beta_sigmas"
_FLOW = f"{_RAMPS} use_flow_sigmas flow_shift"
_SPACING = "timestep_spacing steps_offset"
_SHIFT = "use_dynamic_shifting time_shift_type"
_SOLVER = f"solver_order prediction_type {_THRESHOLDING} algorithm_type solver_type"
_BOUNDED = "lambda_min_clipped variance_type"
_LIMITED = "thresholding dynamic_thresholding_ratio clip_sample_range sample_max_value"

#: What comes after the first five arguments, by the name of the configuration. Others have their
#: fields' order.
_ORDER: Mapping[str, str] = {
    "ConsistencyConfig": "original_inference_steps clip_sample clip_sample_range set_alpha_to_one"
    f" steps_offset prediction_type {_THRESHOLDING} timestep_spacing timestep_scaling"
    " rescale_betas_zero_snr",
    "DDIMConfig": f"clip_sample set_alpha_to_one steps_offset prediction_type {_LIMITED}"
    " timestep_spacing rescale_betas_zero_snr",
    "DDIMInverseConfig": "clip_sample set_alpha_to_one steps_offset prediction_type"
    " clip_sample_range timestep_spacing rescale_betas_zero_snr",
    "DDPMConfig": f"variance_type clip_sample prediction_type {_LIMITED} {_SPACING}"
    " rescale_betas_zero_snr",
    "DEISMultistepConfig": f"{_SOLVER} lower_order_final {_FLOW} {_SPACING} {_SHIFT}",
    "DPMSolverMultistepConfig": f"{_SOLVER} lower_order_final euler_at_final {_RAMPS}"
    f" use_lu_lambdas use_flow_sigmas flow_shift final_sigmas_type {_BOUNDED} {_SPACING}"
    f" rescale_betas_zero_snr {_SHIFT}",
    "DPMSolverMultistepInverseConfig": f"{_SOLVER} lower_order_final euler_at_final {_FLOW}"
    f" {_BOUNDED} {_SPACING}",
    "DPMSolverSDEConfig": f"prediction_type {_RAMPS} noise_sampler_seed {_SPACING}",
    "DPMSolverSinglestepConfig": f"{_SOLVER} lower_order_final {_FLOW} final_sigmas_type"
    f" {_BOUNDED} {_SHIFT}",
    "EDMDPMSolverMultistepConfig": f"prediction_type rho solver_order {_THRESHOLDING}"
    " algorithm_type solver_type lower_order_final euler_at_final final_sigmas_type",
    "EulerConfig": f"prediction_type interpolation_type {_RAMPS} sigma_min sigma_max"
    " timestep_spacing timestep_type steps_offset rescale_betas_zero_snr final_sigmas_type",
    "HeunConfig": f"prediction_type {_RAMPS} clip_sample clip_sample_range {_SPACING}",
    "KDPM2Config": f"{_RAMPS} prediction_type {_SPACING}",
    "PNDMConfig": f"skip_prk_steps set_alpha_to_one prediction_type {_SPACING}",
    "SASolverConfig": f"predictor_order corrector_order prediction_type tau_func {_THRESHOLDING}"
    f" algorithm_type lower_order_final {_FLOW} {_BOUNDED} {_SPACING}",
    "SigmaSpaceConfig": f"{_RAMPS} prediction_type {_SPACING}",
    "UniPCMultistepConfig": f"solver_order prediction_type {_THRESHOLDING} predict_x0 solver_type"
    f" lower_order_final disable_corrector solver_p {_FLOW} {_SPACING} final_sigmas_type"
    f" rescale_betas_zero_snr {_SHIFT}",
}


def signature_of(config_class: type[SchedulerConfig]) -> inspect.Signature:
    """The signature of a scheduler's constructor."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    known = {
        f.name: inspect.Parameter(f.name, kind, default=f.default, annotation=f.type)
        for f in fields(config_class)
        if f.name != "explicit" and f.default is not MISSING
    }
    names = list(known)
    if config_class.__name__ in _ORDER:
        names = names[:5] + _ORDER[config_class.__name__].split()
    return inspect.Signature([known[name] for name in names])


def by_name(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's arguments by name; private ones (``_name``) are dropped.

    Raises:
        UnknownKeywordError: for a name that the class does not have, naming the closest; for an
            argument given twice, or for too many.
    """
    names = list(inspect.signature(cls).parameters)
    positional = dict(zip(names, args, strict=False))
    if len(args) > len(names):
        raise UnknownKeywordError(
            f"{cls.__name__}() takes up to {len(names)} arguments, but {len(args)} are given."
        )
    for name in positional:
        if name in kwargs:
            raise UnknownKeywordError(f"{cls.__name__}() has the argument '{name}' twice.")
    kwargs = {name: value for name, value in kwargs.items() if not name.startswith("_")}
    for name in kwargs:
        if name not in names:
            raise UnknownKeywordError(
                f"{cls.__name__}() has no argument '{name}'.{did_you_mean(name, names)}"
            )
    return positional | kwargs
