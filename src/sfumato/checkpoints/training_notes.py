"""What training programs write into the metadata of a file: words to use, data, settings.

Two conventions are in use: ``modelspec.*`` (a published standard) and ``ss_*`` (kohya's scripts,
which most LoRAs come from). All of it is text from a stranger, and bounded before it is parsed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sfumato.checkpoints.jsonfile import parse_json
from sfumato.errors import ConfigError

_MAX_JSON = 4 * 2**20
_TAGS = 20

#: Keys of the metadata worth showing, and what to call them.
_FACTS = {
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.date": "date",
    "modelspec.architecture": "architecture",
    "modelspec.resolution": "resolution",
    "modelspec.prediction_type": "prediction type",
    "modelspec.license": "licence",
    "modelspec.usage_hint": "usage hint",
    "modelspec.description": "description",
    "ss_output_name": "output name",
    "ss_base_model_version": "base model version",
    "ss_sd_model_name": "trained from",
    "ss_network_module": "network module",
    "ss_network_dim": "network dim",
    "ss_network_alpha": "network alpha",
    "ss_num_train_images": "training images",
    "ss_num_epochs": "epochs",
    "ss_steps": "steps",
    "ss_resolution": "training resolution",
    "ss_learning_rate": "learning rate",
    "ss_unet_lr": "learning rate of the UNet",
    "ss_text_encoder_lr": "learning rate of the text encoder",
    "ss_optimizer": "optimizer",
    "ss_clip_skip": "clip skip",
    "ss_noise_offset": "noise offset",
    "ss_min_snr_gamma": "min SNR gamma",
    "ss_v_parameterization": "v-prediction",
    "ss_training_comment": "comment",
}
_SD1, _SD2, _SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "SDXL"

#: How the values of a key begin, and the base model that this means.
_BASE_MARKS = {
    "ss_base_model_version": {"sd_v1": _SD1, "sd_1.5": _SD1, "sd_v2": _SD2, "sdxl": _SDXL},
    "modelspec.architecture": {
        "stable-diffusion-xl": _SDXL,
        "stable-diffusion-v2": _SD2,
        "stable-diffusion-v1": _SD1,
    },
}


@dataclass(frozen=True, kw_only=True)
class TrainingNotes:
    """What the metadata tells.

    Attributes:
        trigger_words: that call up what was learnt.
        frequent_tags: of the captions, the most frequent first.
        facts: how it was trained.
        base_model: what it was trained from.
    """

    trigger_words: tuple[str, ...] = ()
    frequent_tags: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    base_model: str | None = None


def read_notes(metadata: Mapping[str, str]) -> TrainingNotes:
    """Read the metadata of a file; what cannot be parsed is left out."""
    facts = {
        label: metadata[key][:2000]
        for key, label in _FACTS.items()
        if metadata.get(key) not in (None, "", "None")
    }
    return TrainingNotes(
        trigger_words=_trigger_words(metadata),
        frequent_tags=_tags(metadata),
        facts=facts,
        base_model=_base_model(metadata),
    )


def _base_model(metadata: Mapping[str, str]) -> str | None:
    for key, starts in _BASE_MARKS.items():
        for start, base in starts.items():
            if metadata.get(key, "").startswith(start):
                return base
    return None


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The phrase that the standard has a key for; else what kohya's folders of images are called.

    Such a folder's name is the number of repetitions, an underscore, and the words to learn.
    """
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        return (phrase[:500],)
    folders = _json(metadata, "ss_dataset_dirs") or _json(metadata, "ss_tag_frequency")
    words = [re.sub(r"^\d+_", "", name).strip()[:200] for name in list(folders)[:50]]
    return tuple(dict.fromkeys(word for word in words if word and word != "img"))


def _tags(metadata: Mapping[str, str]) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    for tags in _json(metadata, "ss_tag_frequency").values():
        if isinstance(tags, Mapping):
            for tag, count in tags.items():
                if isinstance(count, int):
                    counts[tag.strip()[:100]] += count
    return tuple(tag for tag, _ in counts.most_common(_TAGS) if tag)


def _json(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    text = metadata.get(key, "")
    if not text or len(text) > _MAX_JSON:
        return {}
    try:
        return parse_json(text, key)
    except ConfigError:
        return {}
