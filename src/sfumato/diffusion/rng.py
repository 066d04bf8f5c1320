"""Names of the ways to draw random numbers, without torch; `seeds` has what they do."""

from __future__ import annotations

from sfumato.errors import InputError, did_you_mean

#: ``cpu`` is torch's generator on the CPU, ``nvidia`` torch's on a card, ``comfyui`` the first for
#: the noise to start from and the second for what samplers add.
RNG_NAMES = ("cpu", "nvidia", "comfyui")
#: Other programs' names for them.
_ALIASES = {"nv": "nvidia", "cuda": "nvidia", "gpu": "nvidia"}
#: What A1111 calls them in a picture's text, where it has a name.
DISPLAY_NAMES = {"cpu": "CPU", "nvidia": "NV", "comfyui": "ComfyUI"}


def find_rng(name: str) -> str:
    """The name in `RNG_NAMES` of a way to draw, given that or another program's name.

    Raises:
        InputError: when there is none.
    """
    known = _ALIASES.get(str(name).lower(), str(name).lower())
    if known not in RNG_NAMES:
        raise InputError(
            f"`rng` has to be one of {', '.join(RNG_NAMES)} but is {str(name)[:80]!r}."
            f"{did_you_mean(known, RNG_NAMES)}"
        )
    return known
