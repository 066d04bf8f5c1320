"""How trainers spell the names of a network's layers.

A `NameTable` is made from the layers that a network has, so it works for every configuration:
each path is entered under all spellings in use, and a file's name is looked up. Kohya's scripts
write underscores for dots; some trainers use the names of the original Stable Diffusion code;
old files of diffusers name the attention processor rather than its projection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.adapters.keys import TEXT_ENCODER, UNET
from sfumato.checkpoints.original.keys import UNET_BLOCKS, KeyMap, open_clip_keys, unet_keys


@dataclass(frozen=True)
class NameTable:
    """The layers of one network: ``paths`` as it names them, ``spellings`` to find them by."""

    paths: frozenset[str]
    spellings: Mapping[str, str]

    def find(self, name: str) -> str | None:
        """The path that a name in any spelling means, or None."""
        plain = name.replace(".processor", "")
        if plain in self.paths:
            return plain
        return self.spellings.get(name) or self.spellings.get(plain)


def name_table(
    network: str, paths: Iterable[str], config: Mapping[str, Any] | None = None
) -> NameTable:
    """The table of a network.

    Args:
        network: ``"unet"`` or ``"text_encoder"``.
        paths: of its layers.
        config: of a UNet, whose blocks the original names count; default Stable Diffusion 1's.
    """
    known = frozenset(paths)
    original = _original_names(network, config)
    spellings: dict[str, str] = {}
    for path in sorted(known):
        found = None if original is None else original.to_original(path)
        for spelling in _spellings(path, None if found is None else found[0]):
            spellings.setdefault(spelling, path)
            spellings.setdefault(spelling.replace(".", "_"), path)
    return NameTable(known, spellings)


def _original_names(network: str, config: Mapping[str, Any] | None) -> KeyMap | None:
    if network == TEXT_ENCODER:
        return open_clip_keys()
    whole = isinstance(config, Mapping) and set(UNET_BLOCKS) <= set(config)
    return unet_keys(config if whole and config else UNET_BLOCKS) if network == UNET else None


def _spellings(path: str, original: str | None) -> Iterator[str]:
    for name in (path, original):
        if name is None:
            continue
        yield name
        if name.endswith(".to_out.0"):
            yield name.removesuffix(".0")
        if re.search(r"\.attn[12]\.to_\w+(\.0)?$", name):
            processed = re.sub(r"\.to_", ".processor.to_", name)
            yield from (processed, processed.removesuffix(".0"))
    if "self_attn." in path:  # diffusers once named these as in the UNet
        yield re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", path)
    if path.startswith("text_model."):
        yield path.removeprefix("text_model.")
