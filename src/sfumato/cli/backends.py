"""What the command can compute with, and which of it draws a request.

The choice depends on the options (and on the picture to replay) alone, never on the machine, so
the same command gives the same picture. Backends compute the same picture up to rounding; which
one did is in the picture's recipe, so that it can be drawn again to the last bit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from sfumato.cli.request import Request
from sfumato.errors import InputError, did_you_mean
from sfumato.runtime.environment import share_processors

if TYPE_CHECKING:
    from sfumato.cli.drawn import Drawn

logger = logging.getLogger(__name__)

AUTO = "auto"
#: The environment variable that chooses a precision; see `sfumato.runtime.policy`.
DTYPE_SWITCH = "SFUMATO_DTYPE"
#: Pixels times steps times pictures for which it pays not to import torch; see docs/start-up.md.
SMALL_WORK = 128 * 128 * 30 * 2


def _nothing(request: Request) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One thing to compute with.

    Attributes:
        about: for people who choose.
        module: has ``draw(request)``, an iterator of `Drawn`.
        obstacle: why it cannot draw a request, as the end of a sentence; None when it can.
    """

    about: str
    module: str
    obstacle: Callable[[Request], str | None] = _nothing


#: Options that torch alone has, by the field of the recipe that they set.
_OF_TORCH = {
    "init_image": "--init-img",
    "mask": "--mask",
    "outpaint": "--outpaint",
    "hires_scale": "--hires",
    "tiling": "--tiling",
    "controlnet": "--controlnet",
    "control_image": "--control-image",
    "class_label": "--class-label",
    "semantic_map": "--semantic-map",
    "boxes": "--boxes",
    "variation_strength": "--variation-strength",
    "seed_resize_from": "--seed-resize-from",
    "eta_noise_seed_delta": "--ensd",
    "guidance": "parts of a guidance",
    "vae": "--vae",
}
#: Samplers that torch alone draws with: noise is a path, or steps are chosen on the way.
_SAMPLERS_OF_TORCH = ("DPMSolverSDEScheduler", "DPMAdaptiveScheduler")


def without_torch(request: Request) -> str | None:
    """Why `sfumato.graph.text_to_image` cannot draw a request, as the end of a sentence."""
    from sfumato.cli.request import choose_sampler
    from sfumato.diffusion.array_noise import ARRAY_RNGS
    from sfumato.diffusion.rng import find_rng
    from sfumato.text.prompt import TAGGED
    from sfumato.text.prompt.tags import take_tags

    recipe = request.recipe
    for name, option in _OF_TORCH.items():
        if recipe[name]:
            return f"has no {option}"
    if request.preview is not None:
        return "has no --preview"
    if request.model.path.is_file():
        return "reads no model in a single file"
    if request.model.pipeline not in (None, "StableDiffusionPipeline"):
        return f"draws with no {request.model.pipeline}"
    if recipe.prompt_syntax not in TAGGED and recipe.prompt_syntax != "comfyui":
        return f"reads no prompts in the syntax {recipe.prompt_syntax}"
    if request.loras or any(take_tags(prompt)[1] for prompt in request.prompts):
        return "takes no LoRAs"
    if request.saving != type(request.saving)():
        return "has no switches that save memory"
    if find_rng(recipe.rng or "cpu") not in ARRAY_RNGS:
        return f"draws no noise as {recipe.rng} does"
    sampler = recipe.sampler or ""
    known = sampler and not sampler.endswith("Scheduler")
    class_name = choose_sampler(sampler, None)[0].class_name if known else sampler
    return f"has no sampler {sampler}" if class_name in _SAMPLERS_OF_TORCH else None


def _numpy_obstacle(request: Request) -> str | None:
    if request.device not in ("auto", "cpu"):
        return f"computes on no {request.device}"
    dtype = request.recipe.dtype
    dtype = os.environ.get(DTYPE_SWITCH, AUTO) if dtype in (None, AUTO) else dtype
    if dtype not in (AUTO, "float32"):
        return f"does not compute in {dtype[:40]}"
    if request.threads is not None:
        return "takes no number of threads (OPENBLAS_NUM_THREADS sets it)"
    return without_torch(request)


def _openvino_obstacle(request: Request) -> str | None:
    if request.device not in ("auto", "cpu"):
        return f"is for the processor here, and not for {request.device}"
    if request.recipe.dtype not in (None, AUTO, "float32", "bfloat16"):
        return f"does not compute in {request.recipe.dtype}"
    return without_torch(request)


def _jax_obstacle(request: Request) -> str | None:
    if request.device not in ("auto", "cpu", "cuda"):
        return f"is not made for {request.device}"
    if request.threads is not None:
        return "takes no number of threads"
    return without_torch(request)


BACKENDS = {
    "numpy": Backend(
        about="no torch to import: small pictures at once",
        module="sfumato.cli.array_drawing",
        obstacle=_numpy_obstacle,
    ),
    "openvino": Backend(
        about="OpenVINO, without torch: large models on a processor (extra openvino)",
        module="sfumato.cli.openvino_drawing",
        obstacle=_openvino_obstacle,
    ),
    "jax": Backend(
        about="JAX, without torch: what XLA compiles for (extra jax)",
        module="sfumato.cli.jax_drawing",
        obstacle=_jax_obstacle,
    ),
    "torch": Backend(about="everything, on any device", module="sfumato.cli.drawing"),
}


def check_backend(name: str | None) -> str | None:
    """The name of a backend, or None for ``auto``.

    Raises:
        InputError: there is none of that name.
    """
    if name is None or name == AUTO:
        return None
    if name not in BACKENDS:
        names = ", ".join((AUTO, *BACKENDS))
        raise InputError(
            f"--backend has to be one of {names}, not {name[:40]!r}.{did_you_mean(name, BACKENDS)}"
        )
    return name


def choose(request: Request) -> tuple[str, str]:
    """The backend that draws a request, and why it does.

    Raises:
        InputError: the one asked for cannot.
    """
    if request.backend is not None:
        obstacle = BACKENDS[request.backend].obstacle(request)
        if obstacle is not None:
            raise InputError(
                f"The backend {request.backend} {obstacle}.", hint="Leave out --backend."
            )
        return request.backend, "it is asked for"
    before = request.recipe.backend
    if before in BACKENDS:
        obstacle = BACKENDS[before].obstacle(request)
        return (
            (before, "it drew the picture")
            if obstacle is None
            else ("torch", f"{before} {obstacle}")
        )
    obstacle = BACKENDS["numpy"].obstacle(request)
    if obstacle is not None:
        return "torch", f"numpy {obstacle}"
    if not request.model.embedded:
        return "torch", "the model is not the embedded one"
    if _work(request) > SMALL_WORK:
        return "torch", "the work is large"
    return "numpy", "the work is small"


def _work(request: Request) -> int:
    recipe = request.recipe
    pictures = request.count * len(request.prompts)
    return (recipe.width or 128) * (recipe.height or 128) * (recipe.steps or 1) * pictures


def draw(request: Request) -> Iterator[Drawn]:
    """Draw with the backend that is chosen; see `choose`.

    Raises:
        SfumatoError: see the backend.
    """
    name, reason = choose(request)
    logger.info("Drawing with %s, because %s.", name, reason)
    if name == "torch":
        share_processors()
    return import_module(BACKENDS[name].module).draw(request)
