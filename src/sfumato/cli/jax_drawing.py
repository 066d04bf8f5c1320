"""From a request to pictures by JAX, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

from sfumato.cli.array_drawing import draw_with
from sfumato.cli.drawn import Drawn
from sfumato.cli.request import Request
from sfumato.errors import InputError, MissingDependencyError
from sfumato.runtime.machine import this_machine

#: JAX's names of the devices that the command knows.
_PLATFORMS = {"cpu": "cpu", "cuda": "cuda"}


def draw(request: Request) -> Iterator[Drawn]:
    """Load the model, then yield each picture as soon as it is there.

    Raises:
        MissingDependencyError: JAX is not installed.
        SfumatoError: when the model cannot be loaded, is not the one that drew the picture to
            replay, or does not take the request.
    """
    if find_spec("jax") is None:
        raise MissingDependencyError(
            "The backend jax needs JAX.", hint="pip install 'sfumato[jax]'"
        )
    if request.device in _PLATFORMS:
        os.environ.setdefault("JAX_PLATFORMS", _PLATFORMS[request.device])
    import jax

    from sfumato.jax.networks import JaxNetworks

    try:
        on_processor = jax.default_backend() == "cpu"
    except RuntimeError as error:
        raise InputError(
            f"JAX finds no device {request.device!r}: {error}.", hint="Use --device cpu."
        ) from error
    path, dtype = request.model.path, request.recipe.dtype
    if dtype in (None, "auto"):
        files = (path / "unet").glob("*.safetensors")
        size = sum(file.stat().st_size for file in files)
        dtype = this_machine().dtype_for_size(size) if on_processor else "bfloat16"
    return draw_with(request, "jax", dtype, lambda: JaxNetworks.load(path, dtype))
