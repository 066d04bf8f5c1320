"""Configurations of early checkpoints that have to be read differently from how they are written.

The pipelines apply these when they are built, as diffusers does.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

#: Scale of the latents of the x4 upscaler.
UPSCALER_FACTOR = 0.08333


def repair_scheduler(scheduler: Any, wanted: Mapping[str, Any]) -> None:
    """Set what early checkpoints have wrong in their scheduler, with a warning for each.

    Args:
        scheduler: the scheduler, or None.
        wanted: setting to the value that it has to have, where the scheduler has the setting.
    """
    config = getattr(scheduler, "config", {})
    changes = {k: value for k, value in wanted.items() if config.get(k, value) != value}
    for name, value in changes.items():
        warnings.warn(
            f"The configuration file of this scheduler: {type(scheduler).__name__} is outdated."
            f" `{name}` should be set to {value} instead of {config[name]}; it is used so."
            " Please update `scheduler/scheduler_config.json` accordingly.",
            FutureWarning,
            stacklevel=5,
        )
    if changes:
        _replace_config(scheduler, changes)


def repair_sample_size(unet: Any, version: str | None = None) -> None:
    """Set ``sample_size`` to 64 for a UNet that diffusers before 0.9 saved with less.

    Args:
        unet: the network, or None.
        version: of the library that wrote its configuration; by default what the configuration
            itself says.
    """
    config = getattr(unet, "config", {})
    version = version or config.get("_diffusers_version", None)
    size = config.get("sample_size", None)
    if version is None or not isinstance(size, int) or size >= 64:
        return
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) >= (0, 9):
        return
    warnings.warn(
        f"The configuration file of the unet has set the default `sample_size` to {size}, smaller"
        " than 64, which is a mistake of early versions; 64 is used. Please update"
        " `unet/config.json` accordingly.",
        FutureWarning,
        stacklevel=5,
    )
    _replace_config(unet, {"sample_size": 64})


def repair_upscaler(vae: Any) -> None:
    """Set ``scaling_factor`` to that of the x4 upscaler, whose first configurations lack it."""
    factor = getattr(getattr(vae, "config", None), "scaling_factor", None)
    if vae is None or factor == UPSCALER_FACTOR:
        return
    warnings.warn(
        f"The configuration file of the vae has a `scaling_factor` of {factor}, which no upscaler"
        f" has; {UPSCALER_FACTOR} is used. Please update `vae/config.json` accordingly.",
        FutureWarning,
        stacklevel=3,
    )
    _replace_config(vae, {"scaling_factor": UPSCALER_FACTOR})


def _replace_config(component: Any, changes: dict[str, Any]) -> None:
    if hasattr(component, "register_to_config"):
        component.register_to_config(**changes)
    else:
        component.config = component.config.replace(**changes)
