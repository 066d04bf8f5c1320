"""Configurations of early checkpoints that have to be read differently from how they are written.

The pipelines apply these when they are built, as diffusers does.
"""

from __future__ import annotations

import re
import warnings
from typing import Any


def repair_scheduler(scheduler: Any) -> None:
    """Set ``steps_offset`` to 1 and ``clip_sample`` to False, with a warning for each.

    Stable Diffusion was released with scheduler configurations that lack the two.
    """
    config = getattr(scheduler, "config", {})
    changes: dict[str, Any] = {}
    if config.get("steps_offset", 1) != 1:
        changes["steps_offset"] = 1
    if config.get("clip_sample", False) is True:
        changes["clip_sample"] = False
    for name, value in changes.items():
        warnings.warn(
            f"The configuration file of this scheduler: {type(scheduler).__name__} is outdated."
            f" `{name}` should be set to {value} instead of {config[name]}; it is used so."
            " Please update `scheduler/scheduler_config.json` accordingly.",
            FutureWarning,
            stacklevel=4,
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
        stacklevel=4,
    )
    _replace_config(unet, {"sample_size": 64})


def _replace_config(component: Any, changes: dict[str, Any]) -> None:
    if hasattr(component, "register_to_config"):
        component.register_to_config(**changes)
    else:
        component.config = component.config.replace(**changes)
