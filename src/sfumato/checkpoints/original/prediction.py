"""What a checkpoint's UNet predicts, the noise or the velocity: no shape says, so clues decide.

In this order: what the caller says, the original configuration, the ``modelspec`` metadata, marker
tensors, a statistic of the weights, the number of training steps. `choose_prediction` tells which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.checkpoints.original.families import Family
from sfumato.checkpoints.original.parts import Part
from sfumato.config import check_choice

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_MODELSPEC = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction"}

#: The standard deviation of this bias is well above the threshold in the published checkpoints
#: that predict velocity, and well below in those that predict noise. ComfyUI uses the same test.
STATISTIC_TENSOR = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
STATISTIC_THRESHOLD = 0.09

#: The step at which Stable Diffusion 2.0 base was saved.
_BASE_STEP = 875_000


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is predicted, and why that is believed.

    Attributes:
        type: as schedulers have it, one of `PREDICTION_TYPES`.
        reason: for the log and `sfumato info`.
        zero_terminal_snr: the noise schedule has to be rescaled so that it ends in pure noise.
    """

    type: str
    reason: str
    zero_terminal_snr: bool = False


def choose_prediction(
    family: Family,
    unet: Part,
    *,
    asked: str | None = None,
    original: str | None = None,
    metadata: Mapping[str, str] | None = None,
    names: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    deviation: Callable[[str], float],
) -> Prediction:
    """Weigh the clues.

    Args:
        family: of the file.
        unet: where its UNet is.
        asked: what the caller says.
        original: what the original configuration says.
        metadata: text in the file beside the tensors.
        names: of all tensors.
        facts: other values in the file, such as ``global_step``.
        deviation: computes the (population) standard deviation of a tensor.

    Raises:
        ConfigError: when ``asked`` is no prediction type.
    """
    snr = "ztsnr" in names
    if asked is not None:
        check_choice("prediction_type", asked, PREDICTION_TYPES)
        return Prediction(type=asked, reason="asked for", zero_terminal_snr=snr)
    if original is not None:
        return Prediction(type=original, reason="original configuration", zero_terminal_snr=snr)
    said = (metadata or {}).get("modelspec.prediction_type", "").lower()
    if said in _MODELSPEC:
        return Prediction(
            type=_MODELSPEC[said], reason="modelspec.prediction_type", zero_terminal_snr=snr
        )
    if "v_pred" in names:
        return Prediction(type="v_prediction", reason="marker tensor", zero_terminal_snr=snr)
    usual = family.scheduler["prediction_type"]
    if family.name != "stable-diffusion-v2":
        return Prediction(type=usual, reason=f"usual for {family.title}", zero_terminal_snr=snr)
    if STATISTIC_TENSOR in unet.names:
        measured = deviation(unet.names[STATISTIC_TENSOR])
        above = measured > STATISTIC_THRESHOLD
        return Prediction(
            type="v_prediction" if above else "epsilon",
            reason=f"statistic of the weights ({measured:.3f}, threshold {STATISTIC_THRESHOLD})",
        )
    if facts is not None and "global_step" in facts:
        base = facts["global_step"] == _BASE_STEP
        return Prediction(type="epsilon" if base else "v_prediction", reason="training step")
    return Prediction(type=usual, reason="no clue in the file")
