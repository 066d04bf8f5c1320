"""The safety checker in JAX; what scores mean is `sfumato.safety.scores`'s business."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from sfumato.errors import InputError
from sfumato.graph.clip_vision import clip_vision
from sfumato.graph.shapes import safety_checker_shapes
from sfumato.jax.mixin import FlaxModelMixin, scope
from sfumato.safety.scores import SafetyCheckerConfig, SafetyScores, judged

logger = logging.getLogger(__name__)

POLICIES = ("black", "flag", "off")


class FlaxStableDiffusionSafetyChecker(FlaxModelMixin[SafetyCheckerConfig]):
    """Judges pictures as `StableDiffusionSafetyChecker` does.

    Attributes:
        policy: what is done with a finding: ``"black"``, ``"flag"`` (only the flag is set), or
            ``"off"`` (nothing is looked at).
    """

    config_class = SafetyCheckerConfig
    weights_name = "model.safetensors"
    class_name = "StableDiffusionSafetyChecker"
    policy = "black"

    def shapes(self, found: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        return safety_checker_shapes(self.config)

    def scores(self, variables: Mapping[str, Any], clip_input: Array) -> list[SafetyScores]:
        """Compare pictures ``(B, 3, H, W)`` from the image processor with the concepts."""
        weights = scope(variables)
        config: Any = self.config
        states = clip_vision(self.ops, weights / "vision_model", config.vision_config, clip_input)
        embeds = self.ops.linear(states.pooled, weights / "visual_projection")
        distances = [
            np.asarray(_cosines(embeds, weights[name]))
            - np.asarray(weights[f"{name}_weights"], np.float32)
            for name in ("special_care_embeds", "concept_embeds")
        ]
        return [judged(*pair) for pair in zip(*distances, strict=True)]

    def check(
        self,
        images: np.ndarray[Any, Any],
        feature_extractor: Any,
        variables: Mapping[str, Any],
    ) -> tuple[np.ndarray[Any, Any], list[bool]]:
        """Judge pictures ``(B, H, W, 3)`` in 0..1, and replace findings as the policy says.

        Args:
            images: the pictures, which stay as they are.
            feature_extractor: a `CLIPImageProcessor`.
            variables: the parameters.

        Raises:
            InputError: there is no feature extractor, or an unknown policy.
        """
        if self.policy not in POLICIES:
            raise InputError(
                f"`policy` has to be one of {', '.join(POLICIES)} but is {self.policy!r}."
            )
        if self.policy == "off":
            return images, [False] * len(images)
        if feature_extractor is None:
            raise InputError(
                "A safety checker needs a `feature_extractor`.",
                hint="Load both from the folder, or pass safety_checker=None.",
            )
        pictures = [Image.fromarray(np.uint8(np.round(255 * image))) for image in images]
        pixels = feature_extractor(pictures, return_tensors="np").pixel_values
        flags = [score.is_finding for score in self.scores(variables, jnp.asarray(pixels))]
        if any(flags):
            logger.warning(
                "Potential NSFW content was detected in one or more images. Try again with a"
                " different prompt and/or seed."
            )
        keep = np.array([self.policy == "flag" or not flag for flag in flags], np.float32)
        return images * keep[:, None, None, None], flags


@jax.jit
def _cosines(a: Array, b: Array) -> Array:
    """Cosines of all rows of ``a`` ``(n, width)`` with those of ``b`` ``(m, width)``."""
    a, b = (x.astype(jnp.float32) for x in (a, b))
    a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12) for x in (a, b))
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
