"""From a sentence to pictures without torch: the flow of `sfumato.pipelines.flow` on arrays.

The same prompts, tables of samplers and random numbers as with torch give the same pictures, up to
the rounding of float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sfumato.diffusion.array_noise import seeded_noise
from sfumato.diffusion.denoise import denoise
from sfumato.diffusion.guidance import ClassifierFree
from sfumato.diffusion.plan import Plan
from sfumato.errors import InputError, NumericalError, TokenizerError
from sfumato.text.contexts import condition
from sfumato.text.long_prompts import find_syntax

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.graph.networks import Networks

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What to draw: one picture.

    Attributes:
        prompt: without tags; ``negative_prompt`` what to steer away from.
        steps: denoising steps.
        guidance_scale: above 1, or with samplers of CFG++ above 0, the network is asked with the
            negative prompt as well.
        seed: of the noise; ``rng`` who draws it, see `sfumato.diffusion.rng`.
        width, height: in pixels; None takes the model's own.
        eta: DDIM's share of fresh noise.
        clip_skip: how many of the text encoder's last layers to leave out.
        guidance_rescale: see `ClassifierFree`.
        prompt_syntax: one of `sfumato.text.long_prompts.SYNTAXES`.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int = 20
    guidance_scale: float = 7.0
    seed: int = 0
    rng: str = "cpu"
    width: int | None = None
    height: int | None = None
    eta: float = 0.0
    clip_skip: int = 0
    guidance_rescale: float = 0.0
    prompt_syntax: str = "a1111"


def draw_image(networks: Networks, wish: Wish, on_step: Callable[[], None] | None = None) -> Image:
    """Draw one picture.

    Args:
        networks: of any backend; the scheduler of ``networks.model`` says how.
        wish: what.
        on_step: called after each of ``wish.steps`` steps.

    Raises:
        InputError: the wish is not one that this flow can fulfil.
        NumericalError: NaN or infinity appeared.
    """
    model = networks.model
    scheduler = model.scheduler
    scheduler.set_timesteps(wish.steps)
    if getattr(scheduler, "adaptive", False):
        raise InputError(
            "Without torch, samplers cannot choose their steps as they go.",
            hint="Add --backend torch, or use another sampler.",
        )
    plan = _plan(scheduler, wish.eta)
    guided = wish.guidance_scale > (0 if plan.wants_negative else 1)
    script, weights = _context(networks, wish, guided)
    guidance = ClassifierFree(
        wish.guidance_scale if guided else 1.0,
        wish.guidance_rescale,
        weights,
        tells_negative=guided and plan.wants_negative,
    )
    noise = seeded_noise([wish.seed], wish.rng)
    x = noise.draw(_shape(model, wish)) * np.float32(plan.init_sigma)
    context = script.spread(len(plan))
    calls = max(len(plan) // wish.steps, 1)
    # Samplers may begin with calls that are no steps, as the progress bar sees it.
    first = len(plan) - wish.steps * getattr(scheduler, "order", calls)
    loop: Any = denoise(_network(networks), x, context, plan, guidance, noise)
    for step in loop:
        x = step.x
        done = step.index + 1
        counted = done > first and done % getattr(scheduler, "order", calls) == 0
        if on_step is not None and (counted or done == len(plan)):
            on_step()
    return to_image(decode(networks, x))


def decode(networks: Networks, latents: Array) -> Array:
    """The picture ``(3, H, W)`` around -1..1 of latents ``(1, C, h, w)``.

    Raises:
        NumericalError: it has NaN or infinity.
    """
    scale = np.float32(networks.model.vae_config.scaling_factor)
    picture = networks.decode(latents / scale)[0]
    if not np.isfinite(picture).all():
        raise NumericalError("NaN or infinity in the picture: the autoencoder (`vae`) overflowed.")
    return picture


def to_image(picture: Array) -> Image:
    """An array ``(3, H, W)`` around -1..1 as an 8-bit picture; values outside are cut."""
    from PIL import Image

    pixels = (picture * np.float32(0.5) + np.float32(0.5)).clip(0, 1)
    rounded = (pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(rounded))


def _plan(scheduler: Any, eta: float) -> Plan:
    """The table, with ``eta`` where the scheduler's ``step`` would take it."""
    if "eta" in inspect.signature(scheduler.step).parameters:
        return scheduler.plan(eta=eta)
    return scheduler.plan()


def _network(networks: Networks) -> Callable[..., Any]:
    def network(x: Array, timestep: Any, context: Array) -> Array:
        return networks.predict(x, float(timestep), context)

    return network


def _shape(model: Any, wish: Wish) -> tuple[int, int, int, int]:
    """Of the latents."""
    factor = 2 ** (len(model.vae_config.block_out_channels) - 1)
    own = model.unet_config.sample_size
    rows, columns = own if isinstance(own, tuple) else (own, own)
    if None in (rows, columns) and None in (wish.height, wish.width):
        raise InputError("The UNet has no default size.", hint="Pass `height` and `width`.")
    height = rows * factor if wish.height is None else wish.height
    width = columns * factor if wish.width is None else wish.width
    if height % factor or width % factor:
        raise InputError(
            f"`height` and `width` have to be divisible by {factor} but are {height} and {width}."
        )
    return 1, model.unet_config.in_channels, height // factor, width // factor


def _context(networks: Networks, wish: Wish, guided: bool) -> tuple[Any, Any]:
    """The embedded prompts by step, and the weights of their parts."""
    syntax = find_syntax(wish.prompt_syntax)
    if syntax is None:
        raise InputError(
            "Without torch, prompts cannot be read literally.", hint="Add --backend torch."
        )
    made = condition(
        [wish.prompt],
        [wish.negative_prompt] if guided else None,
        syntax=syntax,
        encoding=ArrayEncoding(networks),
        steps=wish.steps,
        clip_skip=wish.clip_skip or None,
    )
    script = made.join(lambda positive, negative: np.concatenate([negative, positive]))
    return script, made.weights


class ArrayEncoding:
    """Tokenizer and text encoder of a backend: `sfumato.text.long_prompts.Encoding`."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self.tokenizer: Any = networks.model.tokenizer

    def check_parts(self) -> None:
        """There is always a text encoder here."""

    def most_tokens(self) -> int:
        """What the tokenizer and the positions of the text encoder allow."""
        positions = self._networks.model.text_config.max_position_embeddings
        return min(self.tokenizer.model_max_length, positions)

    def row(self, ids: Sequence[int], used: int, clip_skip: int | None) -> Array:
        """Hidden states ``(length, width)`` of one chunk, of which ``used`` tokens are words."""
        config = self._networks.model.text_config
        if max(ids) >= config.vocab_size:
            raise TokenizerError(
                f"The tokenizer made the id {max(ids)}, but the text encoder has only"
                f" {config.vocab_size} tokens.",
                hint="They have to come from the same model.",
            )
        mask = None
        if config.use_attention_mask:
            mask = (np.arange(len(ids)) < used).astype(np.float32)[None]
        return self._networks.encode_text(np.array([ids]), mask, clip_skip or 0)[0]
