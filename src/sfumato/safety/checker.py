"""The safety checker of Stable Diffusion: does a finished picture resemble forbidden concepts?

A pipeline calls it after decoding. CLIP's vision encoder embeds each picture; where the cosine to
a concept exceeds that concept's threshold, the picture is a finding. Only vectors of the concepts
are published, not their names. Configuration, weight names and verdicts are those of diffusers'
``StableDiffusionSafetyChecker``; scores, and a choice of what to do, are additions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.models.base import ModelMixin
from sfumato.safety.policy import POLICIES, Policy, applied, check_policy
from sfumato.safety.scores import CONCEPTS, SPECIAL, SafetyCheckerConfig, SafetyScores, judged
from sfumato.text.clip_layers import init_linear
from sfumato.text.clip_vision import CLIPVisionModel

logger = logging.getLogger(__name__)


class StableDiffusionSafetyChecker(ModelMixin[SafetyCheckerConfig]):
    """Judges pictures; see the module's docstring.

    Attributes:
        policy: what is done with a finding: ``"black"`` (as diffusers), ``"blur"``, ``"flag"``
            (only the flag is set), or ``"off"`` (nothing is looked at).
        last_scores: of the pictures that were judged last.
    """

    config_class = SafetyCheckerConfig
    weights_name: ClassVar[str] = "model.safetensors"
    ignored_weights: ClassVar[frozenset[str]] = frozenset(
        {"vision_model.vision_model.embeddings.position_ids"}
    )

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        vision, width = self.config.vision_config, self.config.projection_dim
        self.vision_model = CLIPVisionModel(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)
        init_linear(self.visual_projection, vision.hidden_size**-0.5)
        self.concept_embeds = _constant(CONCEPTS, width)
        self.special_care_embeds = _constant(SPECIAL, width)
        self.concept_embeds_weights = _constant(CONCEPTS)
        self.special_care_embeds_weights = _constant(SPECIAL)
        self.last_scores: list[SafetyScores] = []
        self._policy: Policy = "black"

    @property
    def policy(self) -> Policy:
        """What is done with a finding, one of ``"black"``, ``"blur"``, ``"flag"``, ``"off"``."""
        return self._policy

    @policy.setter
    def policy(self, value: Policy) -> None:
        self._policy = check_policy(value)

    @torch.no_grad()
    def scores(self, clip_input: Tensor) -> list[SafetyScores]:
        """Compare pictures with the concepts, (batch, 3, height, width) from the image processor.

        As in diffusers, scores are rounded to three digits, and a concept of special care that is
        recognised makes those after it 0.01 stricter.
        """
        embeds = self.visual_projection(self.vision_model(clip_input).pooler_output)
        special, concepts = (
            _cosines(embeds, table) for table in (self.special_care_embeds, self.concept_embeds)
        )
        special = special - _numbers(self.special_care_embeds_weights)
        concepts = concepts - _numbers(self.concept_embeds_weights)
        return [judged(*pair) for pair in zip(special, concepts, strict=True)]

    def forward(self, clip_input: Tensor, images: Any) -> tuple[Any, list[bool]]:
        """Judge pictures, and replace findings as the policy says.

        Args:
            clip_input: the pictures as the image processor prepares them.
            images: the same pictures, as a tensor (batch, channels, height, width) in -1..1, or
                as an array or list of arrays (height, width, channels) in 0..1.

        Returns:
            The pictures, and for each whether it is a finding. In a tensor findings are in 0..1,
            as they are shown; what was given is not changed.
        """
        if self.policy == "off":
            return images, [False] * len(images)
        self.last_scores = self.scores(clip_input)
        unknown = sum(not scores.is_judged for scores in self.last_scores)
        if unknown:
            logger.warning(
                "The safety checker could not judge %d of %d pictures: its numbers are not finite."
                " Use it in float32.",
                unknown,
                len(self.last_scores),
            )
        flags = [scores.is_finding for scores in self.last_scores]
        if any(flags):
            logger.warning(
                "Potential NSFW content was detected in one or more images. %s"
                " Try again with a different prompt and/or seed.",
                POLICIES[self.policy],
            )
        return applied(self.policy, images, flags), flags


def _constant(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape), requires_grad=False)


def _numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.float().cpu().numpy()


def _cosines(a: Tensor, b: Tensor) -> np.ndarray[Any, Any]:
    """Cosines of all rows of ``a`` (n, width) with those of ``b`` (m, width), (n, m)."""
    return _numbers(F.normalize(a) @ F.normalize(b).T)
