"""Random adapter files for tiny networks, as every trainer would write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Leaves = dict[str, Tensor]

RANK = 4


def draw(seed: int) -> Callable[..., Tensor]:
    """``randn(3, 4)`` with a generator of its own; small, so that networks stay well-behaved."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: 0.2 * torch.randn(*shape, generator=generator)


def lora(shape: torch.Size, randn: Callable[..., Tensor], rank: int = RANK) -> Leaves:
    """``lora_down`` and ``lora_up`` with an alpha, in kohya's shapes."""
    out, inputs, *kernel = shape
    return {
        "lora_down.weight": randn(rank, inputs, *kernel),
        "lora_up.weight": randn(out, rank, *[1] * len(kernel)),
        "alpha": torch.tensor(2.0),
    }


def lora_with_mid(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    """LoCon's form with a middle factor; plain LoRA where there is no kernel."""
    out, inputs, *kernel = shape
    if not kernel:
        return lora(shape, randn)
    return {
        "lora_down.weight": randn(RANK, inputs, 1, 1),
        "lora_up.weight": randn(out, RANK, 1, 1),
        "lora_mid.weight": 3 * randn(RANK, RANK, *kernel),
        "alpha": torch.tensor(3.0),
    }


def dora(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    """LoRA with a magnitude per output."""
    ones = [1] * (len(shape) - 1)
    return {**lora(shape, randn), "dora_scale": 1 + randn(shape[0], *ones).abs()}


def dora_per_input(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    """LoRA with a magnitude per input, as early LyCORIS wrote it."""
    ones = [1] * (len(shape) - 2)
    return {**lora(shape, randn), "dora_scale": 1 + randn(1, shape[1], *ones).abs()}


def loha(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    out, columns = shape[0], shape[1:].numel()
    leaves = {
        "hada_w1_a": randn(out, RANK),
        "hada_w1_b": randn(RANK, columns),
        "hada_w2_a": randn(out, RANK),
        "hada_w2_b": randn(RANK, columns),
        "alpha": torch.tensor(8.0),
    }
    return leaves


def loha_tucker(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    out, inputs, *kernel = shape
    if not kernel:
        return loha(shape, randn)
    return {
        "hada_t1": 3 * randn(RANK, RANK, *kernel),
        "hada_w1_a": randn(RANK, out),
        "hada_w1_b": randn(RANK, inputs),
        "hada_t2": 3 * randn(RANK, RANK, *kernel),
        "hada_w2_a": randn(RANK, out),
        "hada_w2_b": randn(RANK, inputs),
        "alpha": torch.tensor(8.0),
    }


def lokr(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    """The first matrix whole, the second of low rank."""
    (a, b), (c, d) = _split(shape[0]), _split(shape[1])
    rows = d * shape[2:].numel()
    return {
        "lokr_w1": randn(a, c),
        "lokr_w2_a": randn(b, RANK),
        "lokr_w2_b": randn(RANK, rows),
        "alpha": torch.tensor(2.0),
    }


def lokr_full(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    """Both matrices whole: the alpha has no meaning then."""
    (a, b), (c, d) = _split(shape[0]), _split(shape[1])
    return {
        "lokr_w1": randn(a, c),
        "lokr_w2": randn(b, d, *shape[2:]),
        "alpha": torch.tensor(1e30),
    }


def lokr_both(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    """Both matrices of low rank, the second with a core where there is a kernel."""
    (a, b), (c, d) = _split(shape[0]), _split(shape[1])
    leaves = {
        "lokr_w1_a": randn(a, RANK),
        "lokr_w1_b": randn(RANK, c),
        "alpha": torch.tensor(2.0),
    }
    if len(shape) == 2:
        return {**leaves, "lokr_w2_a": randn(b, RANK), "lokr_w2_b": randn(RANK, d)}
    return {
        **leaves,
        "lokr_t2": randn(RANK, RANK, *shape[2:]),
        "lokr_w2_a": randn(RANK, b),
        "lokr_w2_b": randn(RANK, d),
    }


def full(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    return {"diff": 0.1 * randn(*shape), "diff_b": 0.1 * randn(shape[0])}


def ia3_output(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    ones = [1] * (len(shape) - 2)
    weight = randn(1, shape[0], *ones) if ones else randn(shape[0])
    return {"weight": weight, "on_input": torch.tensor(0)}


def ia3_input(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    ones = [1] * (len(shape) - 2)
    weight = randn(1, shape[1], *ones) if ones else randn(shape[1])
    return {"weight": weight, "on_input": torch.tensor(1)}


def glora(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    out, inputs, *kernel = shape
    ones = [1] * len(kernel)
    return {
        "a1.weight": randn(inputs, RANK, *ones),
        "a2.weight": randn(RANK, inputs, *ones),
        "b1.weight": randn(out, RANK, *ones),
        "b2.weight": randn(RANK, inputs, *kernel),
        "alpha": torch.tensor(2.0),
    }


def oft(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    size = _split(shape[0])[0]
    return {
        "oft_blocks": randn(shape[0] // size, size, size),
        "alpha": torch.tensor(0.01),
    }


def oft_rescaled(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    ones = [1] * (len(shape) - 1)
    rescale = 1 + randn(shape[0], *ones)
    return {**oft(shape, randn), "alpha": torch.tensor(0.0), "rescale": rescale}


def boft(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    stages = 2 if shape[0] % 8 == 0 else 1
    return {
        "oft_blocks": randn(stages, shape[0] // 4, 4, 4),
        "alpha": torch.tensor(0.0),
        "rescale": 1 + randn(shape[0], *[1] * (len(shape) - 1)),
    }


def norm(shape: torch.Size, randn: Callable[..., Tensor]) -> Leaves:
    return {"w_norm": randn(shape[0]), "b_norm": randn(shape[0])}


FAMILIES: dict[str, Callable[[torch.Size, Callable[..., Tensor]], Leaves]] = {
    "lora": lora,
    "lora with mid": lora_with_mid,
    "dora": dora,
    "dora per input": dora_per_input,
    "loha": loha,
    "loha tucker": loha_tucker,
    "lokr": lokr,
    "lokr full": lokr_full,
    "lokr both": lokr_both,
    "full": full,
    "ia3 output": ia3_output,
    "ia3 input": ia3_input,
    "glora": glora,
    "oft": oft,
    "oft rescaled": oft_rescaled,
    "boft": boft,
}


def _split(size: int) -> tuple[int, int]:
    """Two factors, the smaller first."""
    small = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return small, size // small


KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


def adapted_layers(network: nn.Module, convolutions: bool = True) -> dict[str, nn.Module]:
    """The layers that trainers adapt: projections in blocks and, if so, convolutions."""
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    return {
        path: layer
        for path, layer in network.named_modules()
        if isinstance(layer, kinds) and ("block" in path or "layers." in path)
    }


def kohya_file(
    networks: Mapping[str, nn.Module],
    family: str | Callable[[torch.Size, Callable[..., Tensor]], Leaves] = "lora",
    seed: int = 0,
    convolutions: bool = True,
) -> dict[str, Tensor]:
    """A file under kohya's names for all layers that trainers adapt."""
    randn = draw(seed)
    make = FAMILIES[family] if isinstance(family, str) else family
    return {
        f"{KOHYA[name]}{path.replace('.', '_')}.{leaf}": tensor
        for name, network in networks.items()
        for path, layer in adapted_layers(network, convolutions).items()
        for leaf, tensor in make(layer.weight.shape, randn).items()
    }


def norm_file(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """LyCORIS' changes of a UNet's norms."""
    randn = draw(seed)
    return {
        f"lora_unet_{path.replace('.', '_')}.{leaf}": tensor
        for path, layer in network.named_modules()
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm)
        for leaf, tensor in norm(layer.weight.shape, randn).items()
    }


def peft_file(
    networks: Mapping[str, nn.Module], seed: int = 0, rank: int = RANK, ends: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """A file as diffusers writes it today: ``unet.<path>.lora_A.weight``."""
    randn = draw(seed)
    ends = ends or ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        for path, layer in network.named_modules():
            if path.endswith(ends) and isinstance(layer, nn.Linear):
                tensors[f"{name}.{path}.lora_A.weight"] = randn(rank, layer.in_features)
                tensors[f"{name}.{path}.lora_B.weight"] = randn(layer.out_features, rank)
    return tensors


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights, and of which class each layer is."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same_weights(network: nn.Module, before: Mapping[str, Tensor]) -> bool:
    """Whether the network has exactly these weights, to the bit, and no others."""
    now = network.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)
