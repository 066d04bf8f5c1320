"""What a pipeline needs and no file of weights holds: the scheduler and the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato.checkpoints.classes import find_class
from sfumato.checkpoints.files import is_regular
from sfumato.checkpoints.original.loading import OriginalCheckpoint
from sfumato.errors import InputError

#: Names that ``scheduler_type`` had in early versions of diffusers.
SCHEDULER_TYPES = {
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
}

#: Schedulers that can end in pure noise; the others give way to the first.
_ZERO_SNR = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")


def make_scheduler(checkpoint: OriginalCheckpoint, scheduler_type: str | None = None) -> Any:
    """The scheduler that a checkpoint was published with, for what its UNet predicts.

    Args:
        checkpoint: the file.
        scheduler_type: another one, by a name of `SCHEDULER_TYPES`.

    Raises:
        InputError: there is no scheduler of that type.
    """
    if scheduler_type is not None and scheduler_type not in SCHEDULER_TYPES:
        known = ", ".join(map(repr, SCHEDULER_TYPES))
        raise InputError(
            f"`scheduler_type` has to be one of {known} but is {str(scheduler_type)[:40]!r}."
        )
    config = scheduler_config(checkpoint)
    name = config.pop("_class_name")
    name = SCHEDULER_TYPES[scheduler_type] if scheduler_type else name
    if checkpoint.prediction.zero_terminal_snr and name not in _ZERO_SNR:
        name = _ZERO_SNR[0]
    if name == "DDIMScheduler":
        config = {"clip_sample": False, **config}  # which its class would do, and no model needs
    return find_class(name, "The checkpoint").from_config(config)


def scheduler_config(checkpoint: OriginalCheckpoint) -> dict[str, Any]:
    """The scheduler's configuration, with its ``_class_name``."""
    if checkpoint.folder is not None:
        config = checkpoint.folder.values("scheduler")
        if checkpoint.asked_prediction is not None:
            config["prediction_type"] = checkpoint.asked_prediction
        return config
    config = dict(checkpoint.settled_family.scheduler)
    if checkpoint.original is not None:
        config |= checkpoint.original.scheduler
    config["prediction_type"] = checkpoint.prediction.type
    if checkpoint.prediction.zero_terminal_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        config.pop("skip_prk_steps", None)
    return config


def make_low_res_scheduler(checkpoint: OriginalCheckpoint) -> Any:
    """The schedule with which the upscaler adds noise to its input; None for other families."""
    config = checkpoint.family.low_res_scheduler
    if checkpoint.folder is not None:
        config = checkpoint.folder.values("low_res_scheduler")
    if config is None:
        return None
    values = dict(config)
    name = values.pop("_class_name")
    return find_class(name, "The checkpoint").from_config(values)


def make_tokenizer(checkpoint: OriginalCheckpoint) -> Any:
    """The tokenizer: CLIP's, whose vocabulary ships with the package; 2.x pads with "!" (id 0).

    None for BERT's, whose vocabulary does not ship, without a folder that has it.
    """
    kind = checkpoint.family.classes.get("tokenizer", "CLIPTokenizer")
    tokenizer_class: Any = find_class(kind, "The checkpoint")
    if checkpoint.folder is not None and (checkpoint.folder.path / "tokenizer").is_dir():
        return tokenizer_class.from_pretrained(checkpoint.folder.path, subfolder="tokenizer")
    return tokenizer_class(**checkpoint.family.tokenizer) if kind == "CLIPTokenizer" else None


def tokenizer_beside(path: Path) -> Any:
    """BERT's tokenizer, of a ``vocab.txt`` in the folder of a file; None if there is none."""
    from sfumato.text.bert_tokenizer import BertTokenizer

    vocabulary = path.parent / "vocab.txt"
    return BertTokenizer(vocabulary) if is_regular(vocabulary) else None
