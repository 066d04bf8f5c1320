"""What one call asks for: the arguments that all pipelines share, read and checked in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sfumato.checkpoints.keywords import reject_unknown
from sfumato.diffusion.guidance_parts import as_parts
from sfumato.pipelines import checks
from sfumato.pipelines.call import CallState
from sfumato.pipelines.saving import Saving, as_savings
from sfumato.pipelines.seamless import read_tiling
from sfumato.pipelines.seeding import SEED_KEYWORDS, read_generator
from sfumato.pipelines.watch import warn_of_legacy

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.diffusion.noise import Generators
    from sfumato.diffusion.steering import GuidancePart


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """Arguments of a call, under the names and with the meanings of `StableDiffusionPipeline`'s.

    A pipeline whose call lacks one of them has the default here. These are not in diffusers:

    Attributes:
        prompt_syntax: ``"a1111"``, ``"a1111-no-norm"``, ``"comfyui"``, or ``"literal"``, which is
            the default: how to read prompts; see docs/prompts.md.
        earlier_steps: of a first pass, from which prompts that change by step count on.
        tiling: draw what can be laid side by side: True, ``"x"`` or ``"y"``.
        loras: name to file of the LoRAs that a prompt's tags may name, besides those loaded.
        guidance: parts that change how a step is guided; see docs/guidance.md.
        savings: what to leave out for nearly the same picture; see docs/speed.md.
    """

    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    ip_adapter_image: Any = None
    ip_adapter_image_embeds: list[Tensor] | None = None
    num_images_per_prompt: int = 1
    num_inference_steps: int = 50
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    image_guidance_scale: float = 1.5
    eta: float = 0.0
    generator: Generators = None
    clip_skip: int | None = None
    cross_attention_kwargs: dict[str, Any] | None = None
    output_type: str | None = "pil"
    return_dict: bool = True
    callback_on_step_end: Callable[..., Any] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    callback: Callable[..., Any] | None = None
    callback_steps: int | None = None
    prompt_syntax: str | None = None
    earlier_steps: int | None = None
    loras: Mapping[str, Any] | None = None
    tiling: bool | str | None = None
    guidance: GuidancePart | Sequence[GuidancePart] | None = None
    savings: Saving | Sequence[Saving] | None = None

    @classmethod
    def read(cls, pipeline: Any, arguments: Mapping[str, Any]) -> Request:
        """Pick the shared arguments out of a call's, and check each by itself.

        What depends on several arguments, or on the pipeline's own, is for its ``check_inputs``.

        Args:
            pipeline: whose call it is.
            arguments: ``locals()`` at the beginning of ``__call__``: its arguments by name, with
                those that it has no name for in ``kwargs``.

        Raises:
            InputError: (a ``ValueError``) an argument is out of range, or the pipeline misses a
                component that drawing takes.
            UnknownKeywordError: (a ``TypeError``) there is no such argument.
        """
        extra = arguments.get("kwargs", {})
        reject_unknown(f"{type(pipeline).__name__}()", extra, pipeline._keywords())
        warn_of_legacy(extra)
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in arguments.items() if name in known} | extra
        given = read_generator(pipeline, given)
        for name in ("callback_on_step_end", "callback"):
            checks.check_callable(name, given.get(name))
        names = getattr(given.get("callback_on_step_end"), "tensor_inputs", None)
        if names is not None:
            given["callback_on_step_end_tensor_inputs"] = names
        parts = ("unet", "scheduler") if given.get("output_type") == "latent" else _PARTS
        for name in parts:
            pipeline._part(name, "drawing")
        return cls(**given)

    def check(self, train_steps: int) -> None:
        """Raise `InputError` for a number out of range; ``train_steps`` bounds the steps."""
        for name in ("guidance_scale", "guidance_rescale", "image_guidance_scale"):
            checks.finite_number(name, getattr(self, name))
        checks.optional_dict("cross_attention_kwargs", self.cross_attention_kwargs)
        checks.optional_dict("loras", self.loras)
        if self.earlier_steps is not None:
            checks.whole_number("earlier_steps", self.earlier_steps, 1, 1_000_000)
        read_tiling(self.tiling)
        as_parts(self.guidance)
        as_savings(self.savings)
        checks.finite_number("eta", self.eta, 0, 1)
        checks.check_steps(self.num_inference_steps, self.timesteps, self.sigmas, train_steps)
        most = checks.MAX_IMAGES_PER_PROMPT
        checks.whole_number("num_images_per_prompt", self.num_images_per_prompt, 1, most)
        checks.check_generator(self.generator, self.pictures)

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        if isinstance(self.prompt, str):
            return 1
        embeds = self.prompt_embeds
        return len(self.prompt or ()) if embeds is None else len(embeds)

    @property
    def pictures(self) -> int:
        """How many pictures are to be drawn."""
        return self.prompts * int(self.num_images_per_prompt)

    def state(self) -> CallState:
        """What callbacks can read and change of this."""
        return CallState(
            guidance_scale=float(self.guidance_scale),
            guidance_rescale=float(self.guidance_rescale),
            image_guidance_scale=float(self.image_guidance_scale),
            clip_skip=self.clip_skip,
            cross_attention_kwargs=self.cross_attention_kwargs,
        )


_PARTS = ("unet", "scheduler", "vae")

#: Arguments that some or all calls of diffusers do not have; every pipeline takes them by name.
OWN_KEYWORDS = (
    "prompt_syntax", "earlier_steps", "loras", "guidance", "savings", "guidance_rescale",
    "tiling", "callback_on_step_end", "callback_on_step_end_tensor_inputs", *SEED_KEYWORDS,
)  # fmt: skip
