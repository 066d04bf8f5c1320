"""Files of the paper's conditioned models: the published ones' shapes, and small random ones."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.parity import plain_ldm as plain

KINDS = ("class", "layout", "semantic", "text")

_DD: dict[str, Any] = {"in_channels": 3, "out_ch": 3, "num_res_blocks": 2, "attn_resolutions": []}
_VQ_F4 = {**_DD, "double_z": False, "z_channels": 3, "resolution": 256, "ch": 128}
_VQ_F4 |= {"ch_mult": [1, 2, 4], "n_embed": 8192}
_VQ_F8 = {**_VQ_F4, "z_channels": 4, "ch_mult": [1, 2, 2, 4], "attn_resolutions": [32]}
_VQ_F8 |= {"n_embed": 16384}
_KL_F8 = {**_DD, "double_z": True, "z_channels": 4, "resolution": 256, "ch": 128}
_KL_F8 |= {"ch_mult": [1, 2, 4, 4]}

_TOKENS = {"use_spatial_transformer": True, "transformer_depth": 1, "num_res_blocks": 2}

#: The published models: UNet, first stage and condition as their files of configuration say.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cin256-v2": {
        "kind": "class",
        "unet": {
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": 192,
            "num_heads": 1,
            "attention_resolutions": [8, 4, 2],
            "channel_mult": [1, 2, 3, 5],
            "context_dim": 512,
            **_TOKENS,
        },
        "first_stage": _VQ_F4,
        "condition": {"n_classes": 1001, "embed_dim": 512},
        "betas": (0.0015, 0.0195),
        "size": 256,
    },
    "cin256": {
        "kind": "class",
        "unet": {
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 256,
            "attention_resolutions": [4, 2, 1],
            "channel_mult": [1, 2, 4],
            "num_head_channels": 32,
            "context_dim": 512,
            **_TOKENS,
        },
        "first_stage": _VQ_F8,
        "condition": {"n_classes": 1000, "embed_dim": 512},
        "betas": (0.0015, 0.0195),
        "size": 256,
    },
    "layout2img-openimages256": {
        "kind": "layout",
        "unet": {
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": 128,
            "attention_resolutions": [8, 4, 2],
            "channel_mult": [1, 2, 3, 4],
            "num_head_channels": 32,
            "context_dim": 512,
            **_TOKENS,
            "transformer_depth": 3,
        },
        "first_stage": _VQ_F4,
        "condition": {"n_embed": 512, "n_layer": 16, "vocab_size": 8192, "max_seq_len": 92},
        "betas": (0.0015, 0.0205),
        "size": 256,
    },
    "semantic_synthesis256": {
        "kind": "semantic",
        "unet": {
            "in_channels": 6,
            "out_channels": 3,
            "model_channels": 128,
            "num_heads": 8,
            "attention_resolutions": [32, 16, 8],
            "channel_mult": [1, 4, 8],
            "num_res_blocks": 2,
        },
        "first_stage": _VQ_F4,
        "condition": {"n_stages": 2, "in_channels": 182, "out_channels": 3},
        "betas": (0.0015, 0.0205),
        "size": 256,
    },
    "txt2img-1p4B": {
        "kind": "text",
        "unet": {
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "num_heads": 8,
            "attention_resolutions": [4, 2, 1],
            "channel_mult": [1, 2, 4, 4],
            "context_dim": 1280,
            **_TOKENS,
        },
        "first_stage": _KL_F8,
        "condition": {"n_embed": 1280, "n_layer": 32},
        "betas": (0.00085, 0.012),
        "scale_factor": 0.18215,
        "size": 256,
    },
    "text2img256": {
        "kind": "text",
        "unet": {
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": 192,
            "attention_resolutions": [8, 4, 2],
            "channel_mult": [1, 2, 3, 5],
            "num_head_channels": 32,
            "context_dim": 640,
            **_TOKENS,
        },
        "first_stage": _VQ_F4,
        "condition": {"n_embed": 640, "n_layer": 32},
        "betas": (0.0015, 0.0195),
        "size": 256,
    },
}


def small(kind: str, seed: int) -> dict[str, Any]:
    """A random small model of a kind, as its file of configuration would describe it."""
    rng = random.Random(seed)
    base = next(c for c in PUBLISHED.values() if c["kind"] == kind)
    levels = rng.choice([2, 3])
    where = [2**level for level in range(levels) if level == 1 or rng.random() < 0.5]
    unet = {**base["unet"], "model_channels": 32, "num_res_blocks": rng.choice([1, 2])}
    unet |= {"channel_mult": [1, *(rng.choice([1, 2, 3]) for _ in range(levels - 1))]}
    if kind != "semantic":
        depth = rng.choice([1, 2, 3])
        unet |= {"attention_resolutions": where, "context_dim": 24, "transformer_depth": depth}
    first_stage = {**base["first_stage"], "ch": 32, "resolution": 32, "n_embed": 12}
    first_stage |= {"ch_mult": [1, rng.choice([1, 2])] + [1] * (levels - 2), "num_res_blocks": 1}
    if kind == "class":
        condition = {"n_classes": rng.randint(3, 20), "embed_dim": 24}
    elif kind == "semantic":
        stages = len(first_stage["ch_mult"]) - 1
        condition = {"n_stages": stages, "in_channels": rng.randint(2, 9), "out_channels": 3}
    else:
        condition = {"n_embed": 24, "n_layer": rng.randint(1, 3)}
        sizes = {"vocab_size": 120, "max_seq_len": rng.choice([9, 11, 20])}
        condition |= sizes if kind == "layout" else {"vocab_size": 40}
    made = {**base, "unet": unet, "first_stage": first_stage, "condition": condition}
    return made | {"size": 32}


@dataclass(frozen=True)
class Plain:
    """A model in plain functions, with its weights under original names."""

    config: dict[str, Any]
    weights: plain.Weights

    @classmethod
    def make(cls, config: dict[str, Any], seed: int = 0, device: str = "cpu") -> Plain:
        """Random weights, or on the device "meta" shapes alone."""
        made = cls(config, plain.Weights(seed, device))
        made._walk(device)
        return made

    def _walk(self, device: str) -> None:
        """Ask for every weight once."""
        config, kind = self.config, self.config["kind"]
        size, dd = config["size"], config["first_stage"]
        side = size // 2 ** (len(dd["ch_mult"]) - 1)
        given = {"class": (1,), "semantic": (1, size, size)}
        length = config["condition"].get("max_seq_len", 77)
        what = torch.zeros(given.get(kind, (1, length)), dtype=torch.int64, device=device)
        x = torch.zeros(1, config["unet"]["out_channels"], side, side, device=device)
        self.predict(x, torch.zeros(1), self.condition(what))
        plain.encode(
            self.weights, dd, dd["z_channels"], torch.zeros(1, 3, size, size, device=device)
        )
        self.decode(x)

    def condition(self, given: Tensor) -> Tensor:
        """Class numbers, labels of pixels, or ids of tokens, as the UNet is told them."""
        kind, condition = self.config["kind"], self.config["condition"]
        if kind == "class":
            sizes = condition["n_classes"], condition["embed_dim"]
            return plain.class_token(self.weights, *sizes, given)
        if kind == "semantic":
            if given.device.type == "meta":  # where one-hot maps cannot be made
                shape = condition["out_channels"], condition["in_channels"], 1, 1
                self.weights("cond_stage_model.channel_mapper.weight", *shape)
                side = given.shape[1] // 2 ** condition["n_stages"]
                return torch.zeros(1, 3, side, side, device="meta")
            return plain.rescale_map(self.weights, condition, given)
        return plain.transformer(self.weights, condition, given)

    def predict(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        if self.config["kind"] == "semantic":
            return plain.unet(self.weights, self.config["unet"], torch.cat([x, told], 1), t)
        return plain.unet(self.weights, self.config["unet"], x, t, told)

    def decode(self, z: Tensor) -> Tensor:
        dd = self.config["first_stage"]
        z = z / self.config.get("scale_factor", 1.0)
        if not dd["double_z"]:
            z = plain.quantise(self.weights, dd["n_embed"], z)
        return plain.decode(self.weights, dd, z)

    def draw(
        self,
        x: Tensor,
        given: Tensor,
        steps: int,
        scale: float = 1.0,
        against: Tensor | None = None,
    ) -> Tensor:
        """Pictures in 0..1 by DDIM, with classifier-free guidance above a scale of 1."""
        told = self.condition(given)
        other = None if against is None else self.condition(against)

        def noise(x: Tensor, t: Tensor) -> Tensor:
            own = self.predict(x, t, told)
            if other is None:
                return own
            away = self.predict(x, t, other)
            return away + scale * (own - away)

        timesteps = [1 + i * (1000 // steps) for i in reversed(range(steps))]
        z = plain.ddim(noise, x, timesteps, *self.config["betas"])
        return (self.decode(z) / 2 + 0.5).clamp(0, 1)
