"""The paper's models once more, as plain functions over weights under their original names.

Written from the paper's equations and the files' layout, to compare with: no modules, no shared
code. Weights are made at random when they are first asked for, so that one walk through a model
tells which names and shapes its file has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(dict[str, Tensor]):
    """Random weights by name, or shapes alone on the device "meta"."""

    def __init__(self, seed: int = 0, device: str = "cpu") -> None:
        super().__init__()
        self.generator, self.device = torch.Generator().manual_seed(seed), device

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            if self.device == "meta":
                self[name] = torch.empty(shape, device="meta")
            else:
                noise = torch.randn(shape, generator=self.generator)
                fan = math.prod(shape[1:]) if len(shape) > 1 else 1
                is_scale = len(shape) == 1 and name.endswith("weight")
                self[name] = (
                    1 + 0.2 * noise if is_scale else noise * (0.3 if fan == 1 else fan**-0.5)
                )
        assert tuple(self[name].shape) == shape, name
        return self[name]

    def conv(
        self, name: str, x: Tensor, out: int, size: int = 3, bias: bool = True, **how: Any
    ) -> Tensor:
        weight = self(f"{name}.weight", out, x.shape[1], size, size)
        how.setdefault("padding", size // 2)
        return F.conv2d(x, weight, self(f"{name}.bias", out) if bias else None, **how)

    def linear(self, name: str, x: Tensor, out: int, bias: bool = True) -> Tensor:
        weight = self(f"{name}.weight", out, x.shape[-1])
        return F.linear(x, weight, self(f"{name}.bias", out) if bias else None)

    def groups(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        c = x.shape[1]
        return F.group_norm(x, 32, self(f"{name}.weight", c), self(f"{name}.bias", c), eps)

    def norm(self, name: str, x: Tensor) -> Tensor:
        c = x.shape[-1]
        return F.layer_norm(x, (c,), self(f"{name}.weight", c), self(f"{name}.bias", c))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over tokens (batch, length, channels)."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# The UNet


def unet(
    w: Weights, config: Mapping[str, Any], x: Tensor, t: Tensor, context: Tensor | None = None
) -> Tensor:
    """What the network predicts; ``config`` has the names of the original files."""
    root, base = "model.diffusion_model.", config["model_channels"]
    widths = [base * m for m in config["channel_mult"]]
    half = base // 2
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    emb = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.device)
    emb = w.linear(
        f"{root}time_embed.2", F.silu(w.linear(f"{root}time_embed.0", emb, 4 * base)), 4 * base
    )

    scales, in_resnet = config.get("use_scale_shift_norm"), config.get("resblock_updown")

    def resnet(name: str, x: Tensor, out: int, resize: Any = None) -> Tensor:
        h = F.silu(w.groups(f"{name}.in_layers.0", x))
        if resize is not None:
            x, h = resize(x), resize(h)
        h = w.conv(f"{name}.in_layers.2", h, out)
        time = w.linear(f"{name}.emb_layers.1", F.silu(emb), 2 * out if scales else out)
        time = time[:, :, None, None]
        if scales:
            scale, shift = time.chunk(2, dim=1)
            h = w.groups(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = w.groups(f"{name}.out_layers.0", h + time)
        h = w.conv(f"{name}.out_layers.3", F.silu(h), out)
        return h + (x if x.shape[1] == out else w.conv(f"{name}.skip_connection", x, out, 1))

    def halve(name: str, x: Tensor, width: int) -> Tensor:
        if in_resnet:
            return resnet(name, x, width, lambda t: F.avg_pool2d(t, 2))
        return w.conv(f"{name}.op", x, width, stride=2)

    def double(name: str, x: Tensor, width: int) -> Tensor:
        if in_resnet:
            return resnet(name, x, width, lambda t: F.interpolate(t, scale_factor=2))
        return w.conv(f"{name}.conv", F.interpolate(x, scale_factor=2, mode="nearest"), width)

    def attend(name: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        per_head = config.get("num_head_channels", -1)
        heads = config["num_heads"] if per_head == -1 else channels // per_head
        if config.get("use_spatial_transformer"):
            assert context is not None
            return spatial_transformer(w, name, x, context, heads, config["transformer_depth"])
        return attention_block(w, name, x, heads)

    x = w.conv(f"{root}input_blocks.0.0", x, base)
    skips, index, scale = [x], 1, 1
    for level, width in enumerate(widths):
        for _ in range(config["num_res_blocks"]):
            x = resnet(f"{root}input_blocks.{index}.0", x, width)
            if scale in config["attention_resolutions"]:
                x = attend(f"{root}input_blocks.{index}.1", x)
            skips.append(x)
            index += 1
        if level < len(widths) - 1:
            x = halve(f"{root}input_blocks.{index}.0", x, width)
            skips.append(x)
            index, scale = index + 1, scale * 2
    x = resnet(f"{root}middle_block.0", x, widths[-1])
    x = attend(f"{root}middle_block.1", x)
    x = resnet(f"{root}middle_block.2", x, widths[-1])
    index = 0
    for level, width in reversed(list(enumerate(widths))):
        for layer in range(config["num_res_blocks"] + 1):
            x = resnet(f"{root}output_blocks.{index}.0", torch.cat([x, skips.pop()], 1), width)
            place = 1
            if scale in config["attention_resolutions"]:
                x, place = attend(f"{root}output_blocks.{index}.1", x), 2
            if level and layer == config["num_res_blocks"]:
                x = double(f"{root}output_blocks.{index}.{place}", x, width)
                scale //= 2
            index += 1
    return w.conv(f"{root}out.2", F.silu(w.groups(f"{root}out.0", x)), config["out_channels"])


def spatial_transformer(
    w: Weights, name: str, x: Tensor, context: Tensor, heads: int, depth: int
) -> Tensor:
    channels, size = x.shape[1], x.shape[2:]
    h = (
        w.conv(f"{name}.proj_in", w.groups(f"{name}.norm", x, 1e-6), channels, 1)
        .flatten(2)
        .transpose(1, 2)
    )
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attn, norm in (("attn1", "norm1"), ("attn2", "norm2")):
            seen = w.norm(f"{block}.{norm}", h)
            told = seen if attn == "attn1" else context
            q = w.linear(f"{block}.{attn}.to_q", seen, channels, bias=False)
            k = w.linear(f"{block}.{attn}.to_k", told, channels, bias=False)
            v = w.linear(f"{block}.{attn}.to_v", told, channels, bias=False)
            h = h + w.linear(f"{block}.{attn}.to_out.0", attention(q, k, v, heads), channels)
        wide, gate = w.linear(
            f"{block}.ff.net.0.proj", w.norm(f"{block}.norm3", h), 8 * channels
        ).chunk(2, -1)
        h = h + w.linear(f"{block}.ff.net.2", wide * F.gelu(gate), channels)
    h = h.transpose(1, 2).unflatten(2, tuple(size))
    return x + w.conv(f"{name}.proj_out", h, channels, 1)


def attention_block(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Self-attention whose queries, keys and values lie together head by head."""
    b, c = x.shape[:2]
    h = w.groups(f"{name}.norm", x).flatten(2)
    qkv = F.conv1d(h, w(f"{name}.qkv.weight", 3 * c, c, 1), w(f"{name}.qkv.bias", 3 * c))
    q, k, v = qkv.unflatten(1, (heads, 3, c // heads)).unbind(2)
    weights = (q.transpose(2, 3) @ k / math.sqrt(c // heads)).softmax(-1)
    h = (v @ weights.transpose(2, 3)).reshape(b, c, -1)
    h = F.conv1d(h, w(f"{name}.proj_out.weight", c, c, 1), w(f"{name}.proj_out.bias", c))
    return x + h.unflatten(2, tuple(x.shape[2:]))


# The first stages


def _vae_resnet(w: Weights, name: str, x: Tensor, out: int) -> Tensor:
    h = w.conv(f"{name}.conv1", F.silu(w.groups(f"{name}.norm1", x, 1e-6)), out)
    h = w.conv(f"{name}.conv2", F.silu(w.groups(f"{name}.norm2", h, 1e-6)), out)
    return h + (x if x.shape[1] == out else w.conv(f"{name}.nin_shortcut", x, out, 1))


def _vae_attention(w: Weights, name: str, x: Tensor) -> Tensor:
    c, h = x.shape[1], w.groups(f"{name}.norm", x, 1e-6)
    q, k, v = (w.conv(f"{name}.{p}", h, c, 1).flatten(2).transpose(1, 2) for p in "qkv")
    mixed = attention(q, k, v, 1).transpose(1, 2).unflatten(2, tuple(x.shape[2:]))
    return x + w.conv(f"{name}.proj_out", mixed, c, 1)


def _vae_middle(w: Weights, name: str, dd: Mapping[str, Any], x: Tensor) -> Tensor:
    x = _vae_resnet(w, f"{name}.mid.block_1", x, x.shape[1])
    if dd.get("attn_type") != "none":
        x = _vae_attention(w, f"{name}.mid.attn_1", x)
    return _vae_resnet(w, f"{name}.mid.block_2", x, x.shape[1])


def encode(w: Weights, dd: Mapping[str, Any], embed_dim: int, x: Tensor) -> Tensor:
    """A picture to latents before quantisation, or to mean and log-variance."""
    root = "first_stage_model.encoder"
    side, last = dd["resolution"], len(dd["ch_mult"]) - 1
    x = w.conv(f"{root}.conv_in", x, dd["ch"])
    for level, mult in enumerate(dd["ch_mult"]):
        for layer in range(dd["num_res_blocks"]):
            x = _vae_resnet(w, f"{root}.down.{level}.block.{layer}", x, dd["ch"] * mult)
            if side in dd["attn_resolutions"]:
                x = _vae_attention(w, f"{root}.down.{level}.attn.{layer}", x)
        if level != last:
            x = F.pad(x, (0, 1, 0, 1))
            x = w.conv(f"{root}.down.{level}.downsample.conv", x, x.shape[1], stride=2, padding=0)
            side //= 2
    x = F.silu(w.groups(f"{root}.norm_out", _vae_middle(w, root, dd, x), 1e-6))
    double = 2 if dd["double_z"] else 1
    x = w.conv(f"{root}.conv_out", x, dd["z_channels"] * double)
    return w.conv("first_stage_model.quant_conv", x, embed_dim * double, 1)


def quantise(w: Weights, entries: int, z: Tensor) -> Tensor:
    """Every vector replaced by the nearest of the codebook."""
    table = w("first_stage_model.quantize.embedding.weight", entries, z.shape[1])
    flat = z.permute(0, 2, 3, 1).flatten(0, 2)
    distances = (flat[:, None] - table[None]).square().sum(-1) if z.device.type != "meta" else None
    chosen = table[distances.argmin(1)] if distances is not None else flat
    return chosen.unflatten(0, (z.shape[0], *z.shape[2:])).permute(0, 3, 1, 2)


def decode(w: Weights, dd: Mapping[str, Any], z: Tensor) -> Tensor:
    """Latents (quantised ones, of a VQ model) to a picture."""
    root = "first_stage_model.decoder"
    z = w.conv("first_stage_model.post_quant_conv", z, dd["z_channels"], 1)
    side = dd["resolution"] // 2 ** (len(dd["ch_mult"]) - 1)
    x = _vae_middle(w, root, dd, w.conv(f"{root}.conv_in", z, dd["ch"] * dd["ch_mult"][-1]))
    for level, mult in reversed(list(enumerate(dd["ch_mult"]))):
        for layer in range(dd["num_res_blocks"] + 1):
            x = _vae_resnet(w, f"{root}.up.{level}.block.{layer}", x, dd["ch"] * mult)
            if side in dd["attn_resolutions"]:
                x = _vae_attention(w, f"{root}.up.{level}.attn.{layer}", x)
        if level:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = w.conv(f"{root}.up.{level}.upsample.conv", x, x.shape[1])
            side *= 2
    x = F.silu(w.groups(f"{root}.norm_out", x, 1e-6))
    return w.conv(f"{root}.conv_out", x, dd["out_ch"])


# The conditions


def transformer(w: Weights, config: Mapping[str, Any], ids: Tensor) -> Tensor:
    """Tokens through the encoder of texts and layouts; heads have 64 channels, there are 8."""
    root, width = "cond_stage_model.transformer", config["n_embed"]
    vocabulary, longest = config.get("vocab_size", 30522), config.get("max_seq_len", 77)
    table = w(f"{root}.token_emb.weight", vocabulary, width)
    x = F.embedding(ids, table) + w(f"{root}.pos_emb.emb.weight", longest, width)[: ids.shape[1]]
    for layer in range(config["n_layer"]):
        one, two = (f"{root}.attn_layers.layers.{2 * layer + i}" for i in (0, 1))
        h = w.norm(f"{one}.0", x)
        q, k, v = (w.linear(f"{one}.1.to_{p}", h, 512, bias=False) for p in "qkv")
        x = x + w.linear(f"{one}.1.to_out", attention(q, k, v, 8), width)
        h = F.gelu(w.linear(f"{two}.1.net.0.0", w.norm(f"{two}.0", x), 4 * width))
        x = x + w.linear(f"{two}.1.net.2", h, width)
    x = w.norm(f"{root}.norm", x)
    w.linear(f"{root}.to_logits", x, vocabulary)  # in the file, and never used
    return x


def class_token(w: Weights, classes: int, width: int, labels: Tensor) -> Tensor:
    return F.embedding(labels, w("cond_stage_model.embedding.weight", classes, width))[:, None]


def rescale_map(w: Weights, config: Mapping[str, Any], labels: Tensor) -> Tensor:
    """One-hot maps, halved so many times, then mapped to few channels."""
    x = F.one_hot(labels, config["in_channels"]).permute(0, 3, 1, 2).float()
    for _ in range(config["n_stages"]):
        x = F.interpolate(x, scale_factor=0.5, mode="bilinear")
    return w.conv("cond_stage_model.channel_mapper", x, config["out_channels"], 1, bias=False)


# Sampling


def ddim(predict: Any, x: Tensor, timesteps: Sequence[int], start: float, end: float) -> Tensor:
    """Deterministic DDIM (arXiv:2010.02502, equation 12) in the paper's noise schedule.

    After the last timestep comes a signal without noise of the first one's kind, as in the
    original code: the product of alphas at timestep 0.
    """
    betas = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2
    products = torch.cumprod(1 - betas, 0)
    for i, t in enumerate(timesteps):
        later = timesteps[i + 1] if i + 1 < len(timesteps) else 0
        here, there = products[t].float(), products[later].float()
        noise = predict(x, torch.full((len(x),), float(t)))
        picture = (x - (1 - here).sqrt() * noise) / here.sqrt()
        x = there.sqrt() * picture + (1 - there).sqrt() * noise
    return x
