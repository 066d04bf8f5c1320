"""Adapters against PEFT, LyCORIS and diffusers: the same weights, and the same pictures."""

from __future__ import annotations

import os
import random
import warnings
from functools import cache
from typing import Any

import peft
import pytest
import torch
from peft.tuners.boft.layer import BOFTLayer
from torch import Tensor, nn

from sfumato.adapters.files import AdapterFile
from sfumato.adapters.loading import load
from sfumato.adapters.network import fuse, remove
from sfumato.checkpoints.original.keys import unet_keys
from tests.adapters.files_like import draw, kohya_file, lora, peft_file
from tests.parity.oracle_pipeline import oracle_of
from tests.pipelines.tiny import seeded, tiny_pipeline, tiny_unet

WEIGHTS = 1e-6
PICTURES = 1e-4


class Net(nn.Module):
    """A linear layer and two convolutions, under names that trainers adapt."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.to_q = nn.Linear(24, 16)
            self.conv1 = nn.Conv2d(16, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.to_q(x)
        return self.conv2(self.conv1(tokens.transpose(1, 2).unflatten(2, (4, 4))))


INPUT = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(5))


def ours(seed: int, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> tuple[Net, Tensor]:
    """Our fused network, and its output with the adapter beside."""
    net = Net(seed)
    load({"unet": net}, AdapterFile({f"unet.{k}": v for k, v in tensors.items()}, metadata))
    with torch.no_grad():
        output = net(INPUT)
    fuse(net)
    return net, output


PEFT: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=6),
    "rank-stabilised lora": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True),
    "lora with biases": lambda: peft.LoraConfig(r=4, lora_alpha=6, lora_bias=True),
    "lora with patterns": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, rank_pattern={"to_q": 2}, alpha_pattern={"conv1": 3}
    ),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=4, alpha=6),
    "loha, effective": lambda: peft.LoHaConfig(r=4, alpha=6, use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=6),
    "lokr, both": lambda: peft.LoKrConfig(r=1, alpha=6, decompose_both=True),
    "lokr, effective": lambda: peft.LoKrConfig(r=1, alpha=6, use_effective_conv2d=True),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, r=0),
    "oft, few terms": lambda: peft.OFTConfig(oft_block_size=4, r=0, num_cayley_neumann_terms=3),
    "oft, exact": lambda: peft.OFTConfig(oft_block_size=4, r=0, use_cayley_neumann=False),
    "oft, shared": lambda: peft.OFTConfig(oft_block_size=4, r=0, block_share=True),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4),
    "ia3": lambda: peft.IA3Config(feedforward_modules=["to_q"]),
    "ia3 after": lambda: peft.IA3Config(feedforward_modules=[]),
}


@pytest.mark.parametrize("kind", list(PEFT))
def test_the_effect_on_each_weight_is_pefts(kind: str) -> None:
    config = PEFT[kind]()
    config.target_modules = {"to_q", "conv1", "conv2"}
    oracle = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.inject_adapter_in_model(config, oracle)
    randn = draw(len(kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(mark in name for mark in ("lora_", "hada_", "lokr_", "oft_", "boft_", "ia3_")):
                offset = 1.0 if any(m in name for m in ("magnitude", "boft_s", "ia3")) else 0.0
                parameter.copy_(offset + randn(*parameter.shape))
    tensors = peft.get_peft_model_state_dict(model)
    assert tensors
    with torch.no_grad():
        expected = model(INPUT)
    net, output = ours(0, tensors, config.to_dict())
    if not kind.startswith("oft"):  # whose convolutions act otherwise than their merged weights
        assert (output - expected).abs().max() < 1e-5
    for path in ("to_q", "conv1", "conv2"):
        layer = model.get_submodule(path)
        layer.merge()
        mine = net.get_submodule(path)
        assert (mine.weight - layer.base_layer.weight).abs().max() < WEIGHTS
        assert (mine.bias - layer.base_layer.bias).abs().max() < WEIGHTS


@pytest.mark.parametrize(("stages", "number", "size"), [(2, 6, 4), (3, 12, 2)])
def test_butterflies_of_several_stages_are_pefts(stages: int, number: int, size: int) -> None:
    # PEFT computes these on a GPU alone; its permutations and its formula can be asked for.
    randn = draw(3)
    blocks, factors = 3 * randn(stages, number, size, size), 1 + randn(16, 1)
    layer: Any = BOFTLayer(nn.Linear(24, 16))
    turns = layer.cayley_batch(blocks.flatten(0, 1)).unflatten(0, (stages, number))
    total = torch.eye(24)
    for stage in range(stages):
        order = layer.block_butterfly_perm(24, int(number / 2**stage), size // 2, stages - 1)
        permutation = layer.perm2mat(order)
        total = permutation @ torch.block_diag(*turns[stage]) @ permutation.T @ total
    net = Net()
    expected = (total @ net.to_q.weight.T).T * factors
    net, _ = ours(0, {"to_q.boft_R": blocks, "to_q.boft_s": factors}, {})
    assert (net.to_q.weight - expected).abs().max() < 1e-5


LYCORIS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoConModule", {"alpha": 2}),
    "lora, tucker": ("LoConModule", {"alpha": 2, "use_tucker": True}),
    "lora, rank-stabilised": ("LoConModule", {"alpha": 2, "rs_lora": True}),
    "lora, scalar": ("LoConModule", {"alpha": 2, "use_scalar": True}),
    "dora": ("LoConModule", {"alpha": 2, "weight_decompose": True}),
    "dora per input": (
        "LoConModule",
        {"alpha": 2, "weight_decompose": True, "wd_on_out": False},
    ),
    "loha": ("LohaModule", {"alpha": 2}),
    "loha, tucker": ("LohaModule", {"alpha": 2, "use_tucker": True}),
    "loha, magnitudes": ("LohaModule", {"alpha": 2, "weight_decompose": True}),
    "lokr": ("LokrModule", {"alpha": 2, "lora_dim": 3, "factor": 2}),
    "lokr, whole": ("LokrModule", {"full_matrix": True}),
    "lokr, both": (
        "LokrModule",
        {"alpha": 2, "lora_dim": 1, "decompose_both": True, "use_tucker": True},
    ),
    "lokr, magnitudes": ("LokrModule", {"alpha": 2, "lora_dim": 3, "weight_decompose": True}),
    "full": ("FullModule", {}),
    "ia3 on output": ("IA3Module", {}),
    "ia3 on input": ("IA3Module", {"train_on_input": True}),
    "glora": ("GLoRAModule", {"alpha": 2}),
    "oft": ("DiagOFTModule", {}),
    "oft, constrained": ("DiagOFTModule", {"constraint": 0.01}),
    "oft, rescaled": ("DiagOFTModule", {"rescaled": True}),
    "boft": ("ButterflyOFTModule", {"lora_dim": 4}),
    "boft, rescaled": ("ButterflyOFTModule", {"lora_dim": 4, "rescaled": True}),
}


def _impulses(channels: int) -> Tensor:
    """One channel at a time is 1 in the middle, so that a convolution shows its weight."""
    return torch.eye(channels, dtype=torch.float64)[:, :, None, None] * torch.nn.functional.pad(
        torch.ones(1, 1, dtype=torch.float64), (2, 2, 2, 2)
    )


#: What makes each layer of `Net` put out its weight, and its bias.
INPUTS = {
    "to_q": torch.eye(24, dtype=torch.float64),
    "conv1": _impulses(16),
    "conv2": _impulses(8),
}


@cache
def _lycoris() -> Any:
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setitem(os.environ, "LYCORIS_KERNEL_BACKEND", "torch")
        return pytest.importorskip("lycoris.modules")


@pytest.mark.parametrize("kind", list(LYCORIS))
def test_the_effect_on_each_weight_is_lycoris(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, options = LYCORIS[kind]
    modules = _lycoris()
    monkeypatch.setenv("LYCORIS_KERNEL_BACKEND", "torch")  # compiling would take a minute
    randn = draw(len(kind))
    dtype = torch.float32 if "oft" in kind else torch.float64  # its rotations are float32
    net, mine = Net(1).to(dtype), Net(1).to(dtype)
    inputs = {path: x.to(dtype) for path, x in INPUTS.items()}
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for path in inputs:
        layer = net.get_submodule(path)
        module = getattr(modules, name)(path, layer, **{"lora_dim": 4, **options})
        module = module.to(dtype).eval()
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                offset = 1.0 if key in ("dora_scale", "rescale", "scalar") else 0.0
                parameter.copy_(offset + randn(parameter.numel()).reshape(parameter.shape))
            expected[path] = module(inputs[path])
        leaves = module.state_dict()
        if name == "FullModule":  # what it writes once it has taken its layer's place
            leaves = {"diff": module.weight.data, "diff_b": module.bias.data}
        for key, tensor in leaves.items():
            tensors[f"lora_unet_{path}.{key}"] = tensor.clone()
    load({"unet": mine}, AdapterFile(tensors))
    fuse(mine)
    for path, output in expected.items():
        assert (mine.get_submodule(path)(inputs[path]) - output).abs().max() < WEIGHTS, path


def test_norms_are_lycoris(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = _lycoris()
    monkeypatch.setenv("LYCORIS_KERNEL_BACKEND", "torch")
    unet = tiny_unet()
    tensors: dict[str, Tensor] = {}
    expected: dict[str, tuple[Tensor, Tensor]] = {}
    randn = draw(1)
    for path, layer in unet.named_modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            module = modules.NormModule(path, layer)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.copy_(randn(*parameter.shape))
                expected[path] = module.get_merged_weight(0.7)
            for key, tensor in module.state_dict().items():
                tensors[f"lora_unet_{path.replace('.', '_')}.{key}"] = tensor.clone()
    load({"unet": unet}, AdapterFile(tensors))
    fuse(unet, scale=0.7)
    for path, (weight, bias) in expected.items():
        assert (unet.get_submodule(path).weight - weight).abs().max() < WEIGHTS
        assert (unet.get_submodule(path).bias - bias).abs().max() < WEIGHTS


# Whole pipelines


@cache
def _pair() -> tuple[Any, Any]:
    ours = tiny_pipeline(1, unet=tiny_unet(7))
    return ours, oracle_of(ours)


def _networks(pipe: Any) -> dict[str, Any]:
    return {"unet": pipe.unet, "text_encoder": pipe.text_encoder}


def _image(pipe: Any, **kwargs: Any) -> Tensor:
    images = pipe(
        "an apple",
        num_inference_steps=3,
        generator=seeded(2),
        output_type="pt",
        negative_prompt="a pear",
        **kwargs,
    ).images
    return images


def _distance(a: Any, b: Any, **kwargs: Any) -> float:
    return (_image(a, **kwargs) - _image(b, **kwargs)).abs().max().item()


def _fresh() -> tuple[Any, Any]:
    mine, oracle = _pair()
    for pipe in (mine, oracle):
        pipe.unload_lora_weights()
    oracle._lora_scale = 1.0  # diffusers loads at the scale of the last call
    return mine, oracle


def _legacy(pipe: Any, seed: int) -> dict[str, Tensor]:
    """Attention processors and text encoder as diffusers first wrote them."""
    tensors = peft_file(_networks(pipe), seed)
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, factor = key.replace(".weight", "").rpartition(".")
        way = {"lora_A": "down", "lora_B": "up"}[factor]
        if key.startswith("unet."):
            layer = layer.removesuffix(".0").replace(".to_", ".processor.to_")
            renamed[f"{layer}_lora.{way}.weight"] = tensor
        else:
            renamed[f"{layer}.lora_linear_layer.{way}.weight"] = tensor
    return renamed


def _newer(pipe: Any, seed: int) -> dict[str, Tensor]:
    """The names between those two."""
    return {
        key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): tensor
        for key, tensor in peft_file({"unet": pipe.unet}, seed).items()
    }


FILES: dict[str, Any] = {
    "peft": lambda pipe, seed: peft_file(_networks(pipe), seed),
    "peft, unet alone": lambda pipe, seed: peft_file({"unet": pipe.unet}, seed),
    "peft, text alone": lambda pipe, seed: peft_file({"text_encoder": pipe.text_encoder}, seed),
    "diffusers, newer": _newer,
    "diffusers, legacy": _legacy,
    "kohya": lambda pipe, seed: kohya_file(_networks(pipe), "lora", seed, convolutions=False),
    "kohya, convolutions": lambda pipe, seed: kohya_file(_networks(pipe), "lora", seed),
    "kohya, other ranks": lambda pipe, seed: kohya_file(
        _networks(pipe), lambda shape, randn: lora(shape, randn, 1 + shape[0] % 5), seed
    ),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_pictures_with_a_lora_are_diffusers(kind: str) -> None:
    mine, oracle = _fresh()
    plain = _image(mine)
    file = FILES[kind](mine, 3)
    mine.load_lora_weights(dict(file), adapter_name="a")
    oracle.load_lora_weights(dict(file), adapter_name="a")
    assert (_image(mine) - plain).abs().max() > 1e-2
    assert _distance(mine, oracle) < PICTURES
    assert _distance(mine, oracle, cross_attention_kwargs={"scale": 0.4}) < PICTURES
    assert _distance(mine, oracle, clip_skip=1) < PICTURES
    for pipe in (mine, oracle):
        pipe.set_adapters("a", 0.3)
    assert _distance(mine, oracle) < PICTURES
    for pipe in (mine, oracle):
        pipe.set_adapters("a", 1.0)
        pipe.fuse_lora(components=["unet", "text_encoder"], lora_scale=0.6)
    assert mine.fused_loras == oracle.fused_loras
    assert _distance(mine, oracle) < PICTURES
    for pipe in (mine, oracle):
        pipe.unfuse_lora(components=["unet", "text_encoder"])
    assert torch.equal(_image(_fresh()[0]), plain)


def test_the_original_codes_names_mean_the_same_layers() -> None:
    mine, oracle = _fresh()
    file = kohya_file({"unet": mine.unet}, "lora", 4)
    oracle.load_lora_weights(dict(file), adapter_name="a")
    renamed: dict[str, Tensor] = {}
    paths = {p.replace(".", "_"): p for p, _ in mine.unet.named_modules()}
    for key, tensor in file.items():
        name, _, leaf = key.removeprefix("lora_unet_").partition(".")
        original = unet_keys(mine.unet.config).to_original(paths[name])
        assert original is not None
        renamed[f"lora_unet_{original[0].replace('.', '_')}.{leaf}"] = tensor.squeeze()
    mine.load_lora_weights(renamed, adapter_name="a")
    assert _distance(mine, oracle) < PICTURES


def test_several_adapters_with_strengths_per_block_are_diffusers() -> None:
    mine, oracle = _fresh()
    rng = random.Random(1)
    for name, seed in (("a", 5), ("b", 6), ("c", 7)):
        file = FILES[rng.choice(["peft", "kohya, convolutions"])](mine, seed)
        mine.load_lora_weights(dict(file), adapter_name=name)
        oracle.load_lora_weights(dict(file), adapter_name=name)
        assert _distance(mine, oracle) < PICTURES  # the newest alone acts
    for _ in range(6):
        names = rng.sample(["a", "b", "c"], rng.randint(1, 3))
        weights = [_weight(rng) for _ in names]
        for pipe in (mine, oracle):
            pipe.set_adapters(names, weights)
        assert _distance(mine, oracle) < PICTURES, (names, weights)
        assert mine.get_active_adapters() == oracle.get_active_adapters()
    for pipe in (mine, oracle):
        pipe.set_adapters(["a", "b"], [0.5, -0.3])
        pipe.delete_adapters("a")
    assert mine.get_list_adapters() == oracle.get_list_adapters()
    assert _distance(mine, oracle) < PICTURES


def _weight(rng: random.Random) -> Any:
    def number() -> float:
        return round(rng.uniform(-1, 1.5), 2)

    if rng.random() < 0.3:
        return number()
    up: Any = rng.choice([number(), {"block_0": [number(), number()]}, {"block_0": number()}])
    unet: Any = {"down": number(), "mid": number(), "up": up}
    for part in rng.sample(["down", "mid", "up"], rng.randint(0, 2)):
        del unet[part]
    return {"unet": rng.choice([unet, number()]), "text_encoder": number()}


def test_adapters_of_two_ranks_fused_one_after_the_other_are_diffusers() -> None:
    mine, oracle = _fresh()
    plain = _image(mine)
    for name, rank in (("a", 2), ("b", 6)):
        file = peft_file(_networks(mine), rank, rank)
        for pipe in (mine, oracle):
            pipe.load_lora_weights(dict(file), adapter_name=name)
    components = ["unet", "text_encoder"]
    for names in (["a"], ["b"]):
        for pipe in (mine, oracle):
            pipe.set_adapters(["a", "b"], [0.7, -0.4])
            pipe.fuse_lora(components=components, adapter_names=names)
            pipe.set_adapters(names, [0.7 if names == ["a"] else -0.4])
        assert _distance(mine, oracle) < PICTURES
        for pipe in (mine, oracle):
            pipe.unfuse_lora(components=components)
    for pipe in (mine, oracle):  # what is fused stays when the adapters are forgotten
        pipe.set_adapters(["a", "b"])
        pipe.fuse_lora(components=components, lora_scale=0.5)
        pipe.unload_lora_weights()
    assert _distance(mine, oracle) < PICTURES
    mine.unfuse_lora()
    assert torch.equal(_image(mine), plain)
    _pair.cache_clear()  # the oracle cannot go back


def test_dora_that_peft_trained_is_pefts() -> None:
    mine, oracle = _pair()
    ends = ["to_q", "to_v", "conv1", "proj_in"]
    config = peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=ends)
    oracle.unet.add_adapter(config)
    randn = draw(9)
    with torch.no_grad():
        for name, parameter in oracle.unet.named_parameters():
            if "lora_" in name:
                parameter.add_(randn(*parameter.shape))
    tensors = peft.get_peft_model_state_dict(oracle.unet)
    mine.unet.load_lora_adapter(tensors, metadata=config.to_dict(), adapter_name="dora")
    assert _distance(mine, oracle) < PICTURES
    remove(mine.unet)
    _pair.cache_clear()


def test_what_is_saved_diffusers_loads(tmp_path: Any) -> None:
    mine, oracle = _fresh()
    file = kohya_file(_networks(mine), "lora", 8)
    mine.load_lora_weights(file, adapter_name="a")
    parts = {name: network.lora_state_dict("a") for name, network in _networks(mine).items()}
    type(mine).save_lora_weights(
        tmp_path / "peft",
        unet_lora_layers=parts["unet"][0],
        text_encoder_lora_layers=parts["text_encoder"][0],
        unet_lora_adapter_metadata=parts["unet"][1],
        text_encoder_lora_adapter_metadata=parts["text_encoder"][1],
    )
    type(mine).save_lora_weights(
        tmp_path / "kohya",
        unet_lora_layers=parts["unet"][0],
        text_encoder_lora_layers=parts["text_encoder"][0],
        unet_lora_adapter_metadata=parts["unet"][1],
        text_encoder_lora_adapter_metadata=parts["text_encoder"][1],
        format="kohya",
    )
    for layout in ("peft", "kohya"):
        oracle.unload_lora_weights()
        oracle.load_lora_weights(
            tmp_path / layout, weight_name="pytorch_lora_weights.safetensors", adapter_name="a"
        )
        assert _distance(mine, oracle) < PICTURES, layout


def test_what_diffusers_saves_is_loaded(tmp_path: Any) -> None:
    mine, oracle = _fresh()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=7,
        target_modules=["to_q", "conv1"],
        use_rslora=True,
        alpha_pattern={"conv1": 3},
    )
    oracle.unet.add_adapter(config, "trained")
    randn = draw(10)
    with torch.no_grad():
        for name, parameter in oracle.unet.named_parameters():
            if "lora_" in name:
                parameter.add_(randn(*parameter.shape))
    oracle.unet.save_lora_adapter(tmp_path / "unet", adapter_name="trained")
    mine.unet.load_lora_adapter(tmp_path / "unet", adapter_name="a")
    assert _distance(mine, oracle) < PICTURES
    mine.unload_lora_weights()
    oracle.save_lora_weights(
        tmp_path / "both",
        unet_lora_layers=peft.get_peft_model_state_dict(oracle.unet, adapter_name="trained"),
        unet_lora_adapter_metadata=config.to_dict(),
    )
    mine.load_lora_weights(tmp_path / "both")
    assert _distance(mine, oracle) < PICTURES
    _pair.cache_clear()
