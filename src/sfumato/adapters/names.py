"""How trainers spell the names of a network's layers.

A `NameTable` is made from the layers that a network has, so it works for every configuration:
each path is entered under all spellings in use, and a file's name is looked up. Kohya's scripts
write underscores for dots; some trainers use the names of the original Stable Diffusion code;
old files of diffusers name the attention processor rather than its projection.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

#: Path within a residual block -> the original code's name.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
#: Layers outside of blocks -> the original code's name.
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
#: Path within a layer of a text encoder -> OpenCLIP's name.
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_PART = re.compile(r"(?:(?:down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class NameTable:
    """The layers of one network: ``paths`` as it names them, ``spellings`` to find them by."""

    paths: frozenset[str]
    spellings: Mapping[str, str]

    def find(self, name: str) -> str | None:
        """The path that a name in any spelling means, or None."""
        if name in self.paths:
            return name
        return self.spellings.get(name) or self.spellings.get(name.replace(".processor", ""))


def name_table(paths: Iterable[str]) -> NameTable:
    """The table of a network whose layers have these paths."""
    known = frozenset(paths)
    original = original_names(known)
    spellings: dict[str, str] = {}
    for path in sorted(known):
        for spelling in _spellings(path, original.get(path)):
            spellings.setdefault(spelling, path)
            spellings.setdefault(spelling.replace(".", "_"), path)
    return NameTable(known, spellings)


def _spellings(path: str, original: str | None) -> Iterator[str]:
    for name in (path, original):
        if name is None:
            continue
        yield name
        if name.endswith(".to_out.0"):
            yield name.removesuffix(".0")
        if re.search(r"\.attn[12]\.to_\w+(\.0)?$", name):
            yield re.sub(r"\.to_", ".processor.to_", name)
            yield re.sub(r"\.to_", ".processor.to_", name).removesuffix(".0")
    if "self_attn." in path:  # diffusers once named these as in the UNet
        yield re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", path)
    if path.startswith("text_model."):
        yield path.removeprefix("text_model.")
        found = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)", path)
        if found and found[2] in _OPEN_CLIP:
            yield f"transformer.resblocks.{found[1]}.{_OPEN_CLIP[found[2]]}"
        if path == "text_model.final_layer_norm":
            yield "ln_final"


def original_names(paths: Iterable[str]) -> dict[str, str]:
    """The original Stable Diffusion code's names of a UNet's layers, by path.

    That code numbers all blocks of a half in one row, so a path's name depends on how many layers
    the blocks before it have.
    """
    paths = set(paths)
    names = {path: name for path, name in _OUTSIDE.items() if path in paths}
    blocks: dict[tuple[str, int], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for path in paths:
        if found := _PART.fullmatch(path):
            block = (path.split("_")[0], int(found[1] or 0))
            blocks[block][found[2]].add(int(found[3]))
    starts = _starts(blocks)
    for path in paths:
        found = _PART.fullmatch(path)
        if found is None:
            continue
        half, block, part = path.split("_")[0], int(found[1] or 0), found[2]
        place = _place(half, part, int(found[3]), starts[half, block], blocks[half, block])
        inner = _RESNET.get(found[4]) if part == "resnets" else found[4]
        if part == "downsamplers":
            inner = inner and inner.replace("conv", "op")
        if place is not None and inner is not None:
            names[path] = f"{place}.{inner}"
    return names


def _starts(blocks: Mapping[tuple[str, int], Mapping[str, set[int]]]) -> dict[tuple[str, int], int]:
    """The running number of each block's first layer."""
    starts: dict[tuple[str, int], int] = {}
    number = {"down": 1, "up": 0, "mid": 0}
    for half, block in sorted(blocks):
        starts[half, block] = number[half]
        parts = blocks[half, block]
        number[half] += _count(parts["resnets"]) + (half == "down" and "downsamplers" in parts)
    return starts


def _place(
    half: str, part: str, index: int, start: int, parts: Mapping[str, set[int]]
) -> str | None:
    if half == "mid":
        number = 2 * index if part == "resnets" else 1
        return f"middle_block.{number}" if part in ("resnets", "attentions") else None
    row = "input_blocks" if half == "down" else "output_blocks"
    layers = _count(parts["resnets"])
    if part in ("resnets", "attentions"):
        return f"{row}.{start + index}.{int(part == 'attentions')}"
    if part == "downsamplers":
        return f"{row}.{start + layers}.0"
    if part == "upsamplers":
        return f"{row}.{start + layers - 1}.{2 if 'attentions' in parts else 1}"
    return None


def _count(indices: set[int]) -> int:
    return max(indices, default=-1) + 1
