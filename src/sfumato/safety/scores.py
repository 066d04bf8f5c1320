"""What a picture's resemblance to the safety checker's concepts means; arrays of any backend.

Thresholds and rounding are those of diffusers' checker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from sfumato.config import Config, check_int
from sfumato.errors import ConfigError
from sfumato.models.checks import MAX_CHANNELS, label
from sfumato.text.clip_config import IGNORED, CLIPVisionConfig, vision_half

#: Concepts that are findings, and those that only make the checker more careful.
CONCEPTS, SPECIAL = 17, 3

#: How much lower the thresholds are once a picture resembles a concept of special care.
_ADJUSTMENT = np.float32(0.01)


@dataclass(frozen=True, kw_only=True)
class SafetyCheckerConfig(Config):
    """The parts of a CLIP model's configuration that shape the checker."""

    ignored_keys: ClassVar[frozenset[str]] = IGNORED | {
        "initializer_factor",
        "logit_scale_init_value",
        "text_config",
        "text_config_dict",
        "vision_config_dict",
    }

    vision_config: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512

    def validate(self) -> None:
        check_int(label(self, "projection_dim"), self.projection_dim, 1, MAX_CHANNELS)
        if not isinstance(self.vision_config, CLIPVisionConfig):
            raise ConfigError(f"`{label(self, 'vision_config')}` has to be an object.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.from_dict`; the vision encoder's part may be a plain mapping."""
        given = values.get("vision_config")
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError("`SafetyCheckerConfig.vision_config` has to be an object.")
        vision = CLIPVisionConfig.from_dict(vision_half(values))
        return super().from_dict({**values, "vision_config": vision})

    def to_dict(self) -> dict[str, Any]:
        """As `Config.to_dict`, with the key by which transformers tells models apart."""
        return {**super().to_dict(), "model_type": "clip"}


@dataclass(frozen=True)
class SafetyScores:
    """How far one picture is beyond the thresholds; above 0 is a finding.

    Attributes:
        special_care: of the 3 concepts that make the checker more careful.
        concepts: of the 17 concepts that are findings.
    """

    special_care: tuple[float, ...]
    concepts: tuple[float, ...]

    @property
    def is_finding(self) -> bool:
        """Whether a concept is recognised. NaN, from numbers out of range, is none."""
        return any(score > 0 for score in self.concepts)

    @property
    def is_judged(self) -> bool:
        """Whether all scores are numbers."""
        return bool(np.isfinite([*self.special_care, *self.concepts]).all())


def judged(special: np.ndarray[Any, Any], concepts: np.ndarray[Any, Any]) -> SafetyScores:
    adjustment, care = np.float32(0), []
    for score in special:
        care.append(float(np.round(score + adjustment, 3)))
        if care[-1] > 0:
            adjustment = _ADJUSTMENT
    return SafetyScores(tuple(care), tuple(np.round(concepts + adjustment, 3).tolist()))
