"""The recipe of a picture, and the two texts that a picture carries it in.

    Recipe  <->  infotext   PNG keyword ``parameters``, the text that A1111's web UI made common:
                            every gallery reads it, but it is ambiguous
    Recipe  <->  JSON       PNG keyword ``sfumato``, exact; it wins when both are there

A JPEG or WebP carries the same texts as EXIF data; see `sfumato.checkpoints.exif`. Everything
here is a pure function from text to text; `sfumato.checkpoints.picture_files` opens the files.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sfumato.checkpoints.jsonfile import parse_json
from sfumato.config import Config, check_int
from sfumato.errors import ConfigError

logger = logging.getLogger(__name__)

INFOTEXT_KEYWORD = "parameters"
JSON_KEYWORD = "sfumato"
MAX_SEED = 2**64 - 1

_JSON_FORMAT = 1
_MAX_TEXT = 1 << 20  # characters of one text; longer ones are not recipes
_NEGATIVE = "Negative prompt:"
#: One ``key: value`` of the last line of an infotext; a value may be a JSON string. A1111 looks for
#: ``\w[\w \-/]+:`` from every letter on, which takes hours in a megabyte of letters; a key begins
#: with the first letter of a run of such, so one look at each run is enough.
_ENTRY = re.compile(
    r"""(?<![\w \-/])[ \-/]*+(\w[\w \-/]++):\s*+("(?:\\.|[^\\"])++"(?=,|$)|[^,]*+)(?:,|$)"""
)
_KEY = re.compile(r"\w[\w \-/]+")


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """What a picture was drawn from; None where it is not known or does not apply.

    Attributes:
        prompt: the text; ``negative_prompt`` what to steer away from.
        steps: denoising steps, 1 or more.
        sampler: display name such as ``"Euler a"``.
        schedule: display name such as ``"Karras"``; ``"Automatic"`` is the model's own.
        cfg_scale: guidance scale.
        seed: of this very picture, 0 to 2^64 - 1.
        variation_seed: of the noise towards which the first noise was turned.
        variation_strength: how far, 0 to 1.
        seed_resize_from: size, as ``"512x768"``, whose noise was put in the middle.
        width, height: in pixels.
        model_hash: first ten hexadecimal digits of the SHA-256 of the UNet's weight file.
        model: the model's name.
        clip_skip: as A1111 counts: 1 is the text encoder's last layer, 2 the one before.
        eta: DDIM's share of fresh noise, 0 to 1.
        guidance_rescale: 0 to 1.
        guidance: parts of the guidance with their numbers, as ``"pag 3 + interval 0.1 0.8"``.
        dtype: of the computation, such as ``"float32"``; not part of an infotext.
        backend: what computed it, such as ``"numpy"``; not part of an infotext. Pictures drawn
            before there was a choice have none, and were computed by torch. Likewise
            ``quantization`` of the weights, and ``memory``: the switches that saved it, as
            ``"vae-tiling + attention-slicing"``.
        loras: name to file of the LoRAs that tags in the prompt name; not part of an infotext.
        eta_noise_seed_delta: added to the seed for noise that samplers add.
        vae: file or folder of the autoencoder in place of the model's; not part of an infotext.
        rng: where the noise was drawn: ``"CPU"``, ``"NV"`` for an NVIDIA card, ``"ComfyUI"``.
        prompt_syntax: see `sfumato.text.prompt`.
        strength: how much of a given picture, or of a first pass, was drawn anew, 0 to 1.
        init_image, mask, control_image: files; not part of an infotext, as is ``outpaint``: pixels
            added on the left, above, on the right and below, as ``"0,0,64,0"``.
        hires_scale, hires_upscaler, hires_steps: of a second pass; see docs/pipelines.md.
        tiling: ``"True"``, ``"x"`` or ``"y"``.
        controlnet: folder of a ControlNet; ``control_strength`` how strongly it acted.
        class_label: number or name of a class; ``semantic_map`` and ``boxes`` are files. See
            docs/latent-diffusion.md.
        version: the program that drew it.
        extra: entries of an infotext that sfumato does not know.
    """

    prompt: str = ""
    negative_prompt: str = ""
    steps: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    cfg_scale: float | None = None
    seed: int | None = None
    variation_seed: int | None = None
    variation_strength: float | None = None
    seed_resize_from: str | None = None
    width: int | None = None
    height: int | None = None
    model_hash: str | None = None
    model: str | None = None
    clip_skip: int | None = None
    eta: float | None = None
    guidance_rescale: float | None = None
    guidance: str | None = None
    dtype: str | None = None
    backend: str | None = None
    quantization: str | None = None
    memory: str | None = None
    loras: Mapping[str, str] = field(default_factory=dict)
    eta_noise_seed_delta: int | None = None
    vae: str | None = None
    rng: str | None = None
    prompt_syntax: str | None = None
    strength: float | None = None
    init_image: str | None = None
    mask: str | None = None
    outpaint: str | None = None
    hires_scale: float | None = None
    hires_upscaler: str | None = None
    hires_steps: int | None = None
    tiling: str | None = None
    controlnet: str | None = None
    control_image: str | None = None
    control_strength: float | None = None
    class_label: str | None = None
    semantic_map: str | None = None
    boxes: str | None = None
    version: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def validate(self) -> None:
        """Raise `ConfigError` if a field is of another type or out of range."""
        for name in (*_INT_RANGES, *_FLOAT_RANGES, *_TEXT_FIELDS):
            value = getattr(self, name)
            if value is not None or name in ("prompt", "negative_prompt"):
                _check_field(name, value)
        for name in ("extra", "loras"):
            table = self[name]
            if not isinstance(table, Mapping) or not all(
                isinstance(text, str) for pair in table.items() for text in pair
            ):
                raise ConfigError(f"`Recipe.{name}` has to map text to text.")

    def to_dict(self) -> dict[str, Any]:
        """The known fields as plain values; what is None or empty is left out."""
        return {k: v for k, v in super().to_dict().items() if v is not None and v != {}}


_INT_RANGES = {
    "steps": (1, 100_000),
    "seed": (0, MAX_SEED),
    "variation_seed": (0, MAX_SEED),
    "eta_noise_seed_delta": (0, MAX_SEED),
    "width": (1, 1 << 20),
    "height": (1, 1 << 20),
    "clip_skip": (1, 1000),
    "hires_steps": (1, 100_000),
}
_FLOAT_RANGES = {
    "cfg_scale": (-1e6, 1e6),
    "eta": (0.0, 1.0),
    "guidance_rescale": (0.0, 1.0),
    "variation_strength": (0.0, 1.0),
    "strength": (0.0, 1.0),
    "hires_scale": (1.0, 8.0),
    "control_strength": (-100.0, 100.0),
}
_TEXT_FIELDS = (
    "prompt", "negative_prompt", "sampler", "schedule", "model_hash", "model", "dtype",
    "backend", "quantization", "memory", "guidance", "vae", "rng", "seed_resize_from",
    "prompt_syntax", "init_image", "mask", "outpaint", "hires_upscaler", "tiling", "controlnet",
    "control_image", "class_label", "semantic_map", "boxes", "version",
)  # fmt: skip

#: (key of the infotext, field of the recipe, type), in the order in which they are written.
#: ``Size`` stands for two fields and the unknown entries come before ``Version``.
_ENTRIES: tuple[tuple[str, str, type], ...] = (
    ("Steps", "steps", int),
    ("Sampler", "sampler", str),
    ("Schedule type", "schedule", str),
    ("CFG scale", "cfg_scale", float),
    ("Seed", "seed", int),
    ("Size", "size", str),
    ("Model hash", "model_hash", str),
    ("Model", "model", str),
    ("Variation seed", "variation_seed", int),
    ("Variation seed strength", "variation_strength", float),
    ("Seed resize from", "seed_resize_from", str),
    ("Denoising strength", "strength", float),
    ("Clip skip", "clip_skip", int),
    ("ENSD", "eta_noise_seed_delta", int),
    ("RNG", "rng", str),
    ("Tiling", "tiling", str),
    ("Hires upscale", "hires_scale", float),
    ("Hires steps", "hires_steps", int),
    ("Hires upscaler", "hires_upscaler", str),
    ("Eta", "eta", float),
    ("CFG rescale", "guidance_rescale", float),
    ("Guidance parts", "guidance", str),
    ("Prompt syntax", "prompt_syntax", str),
    ("Class label", "class_label", str),
    ("Version", "version", str),
)
_FIELDS = {key: (name, kind) for key, name, kind in _ENTRIES}
#: What readers take when the entry is absent, so that it need not be written.
_ABSENT_MEANS = {
    "clip_skip": 1,
    "eta": 0.0,
    "guidance_rescale": 0.0,
    "variation_strength": 0.0,
    "eta_noise_seed_delta": 0,
    "prompt_syntax": "a1111",
}


def _check_field(name: str, value: Any) -> None:
    label = f"Recipe.{name}"
    if name in _INT_RANGES:
        check_int(label, value, *_INT_RANGES[name])
    elif name in _FLOAT_RANGES:
        low, high = _FLOAT_RANGES[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and low <= value <= high):  # which a NaN is not either
            raise ConfigError(
                f"`{label}` has to be a number from {low:g} to {high:g} but is {value!r:.80}."
            )
    elif not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ConfigError(f"`{label}` has to be text of at most {_MAX_TEXT} letters.")


# -- infotext ----------------------------------------------------------------------------------


def to_infotext(recipe: Recipe) -> str:
    """The text of the PNG keyword ``parameters``.

    >>> print(to_infotext(Recipe(prompt="a cat", negative_prompt="dogs", steps=20, model="a,b",
    ...                          cfg_scale=7.0, seed=5, width=512, height=512)))
    a cat
    Negative prompt: dogs
    Steps: 20, CFG scale: 7, Seed: 5, Size: 512x512, Model: "a,b"
    """
    negative = f"\n{_NEGATIVE} {recipe.negative_prompt}" if recipe.negative_prompt else ""
    entries = ", ".join(f"{key}: {_quote(value)}" for key, value in _written_entries(recipe))
    return f"{recipe.prompt}{negative}\n{entries}"


def _written_entries(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for key, name, _ in _ENTRIES:
        if key == "Version":
            yield from (pair for pair in recipe.extra.items() if _KEY.fullmatch(pair[0]))
        if key == "Size":
            value = f"{recipe.width}x{recipe.height}" if recipe.width and recipe.height else None
        elif getattr(recipe, name) == _ABSENT_MEANS.get(name):
            value = None
        else:
            value = getattr(recipe, name)
        if value is not None:
            yield key, _number_text(value) if isinstance(value, float) else str(value)


def _number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _quote(value: str) -> str:
    """A JSON string when the bare value would not be read back as it is."""
    if any(c in value for c in ",\n:") or value.startswith('"') or value != value.strip():
        return json.dumps(value, ensure_ascii=False)
    return value


def _unquote(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return text if isinstance(text, str) else value


def parse_infotext(text: str) -> Recipe:
    """Read what A1111, its relatives or `to_infotext` wrote.

    The last line holds the parameters when it looks like at least three of them. A line that
    begins with ``Negative prompt:`` ends the prompt. Entries that are not known, or whose value
    is not what it should be, are kept in ``extra``; no clip skip, eta or the like means none,
    and no syntax that of A1111.

    >>> recipe = parse_infotext("a cat\\nSteps: 20, Sampler: Euler a, Seed: 5, Face: yes")
    >>> recipe.prompt, recipe.steps, recipe.sampler, recipe.extra
    ('a cat', 20, 'Euler a', {'Face': 'yes'})
    """
    if len(text) > _MAX_TEXT:
        raise ConfigError(f"The text has {len(text)} letters; a recipe has at most {_MAX_TEXT}.")
    *lines, last = text.rstrip().split("\n")
    entries = _ENTRY.findall(last)
    if len(entries) < 3:
        lines, entries = text.rstrip("\n").split("\n"), []
    cut = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[cut:])[len(_NEGATIVE) :].removeprefix(" ")
    values: dict[str, Any] = dict(_ABSENT_MEANS) if entries else {}
    extra: dict[str, str] = {}
    for key, raw in entries:
        value = _unquote(raw)
        if known := _read_entry(key, value):
            values.update(known)
        else:
            extra[key] = value
    return Recipe(prompt="\n".join(lines[:cut]), negative_prompt=negative, extra=extra, **values)


def _read_entry(key: str, value: str) -> dict[str, Any]:
    """The recipe's fields that an entry stands for; empty when it is not known or not sound."""
    name, kind = _FIELDS.get(key, ("", str))
    if name == "size":
        sides = re.fullmatch(r"(\d{1,7})x(\d{1,7})", value)
        fields = {"width": sides[1], "height": sides[2]} if sides else {}
        kind = int
    else:
        fields = {name: value} if name else {}
    try:
        read = {name: kind(text) for name, text in fields.items()}
        for name, number in read.items():
            _check_field(name, number)
    except (ValueError, ConfigError):
        return {}
    return read


# -- JSON --------------------------------------------------------------------------------------


def to_json(recipe: Recipe) -> str:
    """The text of the PNG keyword ``sfumato``: one line of ASCII, whatever the prompt holds."""
    return json.dumps({"format": _JSON_FORMAT, **recipe.to_dict()}, allow_nan=False)


def from_json(text: str) -> Recipe:
    """Read what `to_json` wrote; keys of later versions are ignored.

    Raises:
        ConfigError: when it is no JSON object or a value is out of range.
    """
    if len(text) > 12 * _MAX_TEXT:  # a letter takes up to twelve characters in ASCII JSON
        raise ConfigError("The recipe's JSON is too long.")
    values = parse_json(text, "The recipe")
    known = set(Recipe())
    return Recipe.from_dict({k: v for k, v in values.items() if k in known})


# -- both --------------------------------------------------------------------------------------


def recipe_to_texts(recipe: Recipe) -> dict[str, str]:
    """Keyword to text, both forms; letters that a PNG's text cannot hold become U+FFFD.

    Only the infotext can hold such letters (NUL and lone surrogates); the JSON escapes them.
    """
    infotext = re.sub("[\0\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", to_infotext(recipe))
    return {INFOTEXT_KEYWORD: infotext, JSON_KEYWORD: to_json(recipe)}


def recipe_from_texts(texts: Mapping[str, str]) -> Recipe | None:
    """The recipe in a picture's texts, from our JSON if it is sound, else from the infotext.

    Returns:
        None when neither is there.

    Raises:
        ConfigError: when the only text that is there cannot be read.
    """
    if JSON_KEYWORD in texts:
        try:
            return from_json(texts[JSON_KEYWORD])
        except ConfigError as error:
            if INFOTEXT_KEYWORD not in texts:
                raise
            logger.warning("The exact recipe is damaged (%s), taking the text for people.", error)
    if INFOTEXT_KEYWORD in texts:
        return parse_infotext(texts[INFOTEXT_KEYWORD])
    return None
