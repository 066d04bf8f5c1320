"""The first stages that the latent diffusion paper publishes: KL f4, f8, f16, f32, VQ f4, f8, f16.

Their configurations ship with the package. The number after the f says how many pixels along a
side become one latent.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from sfumato.checkpoints.jsonfile import parse_json
from sfumato.errors import InputError, did_you_mean

_FILE = "first-stages.json"

#: What they have in common. The paper does not scale latents of a codebook; KL latents are scaled
#: by a factor that lies in the file of the model that draws in them.
_COMMON: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 1.0,
}


@cache
def _table() -> dict[str, dict[str, Any]]:
    file = files("sfumato.assets").joinpath("configs", _FILE)
    return parse_json(file.read_text("utf-8"), _FILE)


def first_stage_names() -> tuple[str, ...]:
    """The names of all, such as ``vq-f4``."""
    return tuple(_table())


def first_stage(name: str) -> tuple[str, dict[str, Any]]:
    """The class and the configuration of one.

    Raises:
        InputError: there is none of that name.

    >>> first_stage("vq-f8")[0]
    'VQModel'
    """
    if name not in _table():
        known = ", ".join(_table())
        raise InputError(
            f"There is no first stage {name[:40]!r}; there are {known}."
            f"{did_you_mean(name[:40], _table())}"
        )
    config = {**_COMMON, **_table()[name]}
    return config.pop("class"), config
