"""Classes, semantic maps and layouts become tokens and channels; what is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato import Box, ClassEmbedder, ConfigError, InputError, Layout, LayoutEncoder
from sfumato import SpatialRescaler as Rescaler
from sfumato.conditioners.condition import Conditioner

CPU = torch.device("cpu")


def channels(conditioner: Conditioner, given: Any) -> Tensor:
    found = conditioner.encode(given, CPU, torch.float32).channels
    assert found is not None
    return found


def tokens(conditioner: Conditioner, given: Any) -> Tensor:
    found = conditioner.encode(given, CPU, torch.float32).tokens
    assert found is not None
    return found


# -- classes


def test_each_class_is_one_token() -> None:
    table = ClassEmbedder(n_classes=6, embed_dim=4)
    found = tokens(table, [5, 0])
    assert found.shape == (2, 1, 4)
    assert torch.equal(found[:, 0], table.embedding.weight[[5, 0]])
    forms: list[Any] = [
        3,
        [3],
        (3,),
        torch.tensor(3),
        torch.tensor([3]),
        np.array([3]),
        np.int64(3),
    ]
    for form in forms:
        assert table.count(form) == 1
        assert torch.equal(tokens(table, form)[0, 0], table.embedding.weight[3])


def test_guidance_goes_away_from_the_last_class_unless_told() -> None:
    table = ClassEmbedder(n_classes=6, embed_dim=4)
    assert table.unconditional_class == 5
    own = table.encode_negative(3, None, CPU, torch.float32).tokens
    assert torch.equal(own, table.embedding.weight[[5, 5, 5], None])
    told = table.encode_negative(2, [1, 2], CPU, torch.float32).tokens
    assert torch.equal(told, table.embedding.weight[[1, 2], None])
    assert ClassEmbedder(n_classes=6, embed_dim=4, unconditional_class=2).unconditional_class == 2
    without = ClassEmbedder(n_classes=6, embed_dim=4, unconditional_class=None)
    with pytest.raises(InputError, match="trained with classes alone"):
        without.encode_negative(1, None, CPU, torch.float32)
    with pytest.raises(InputError, match="2 negative classes for 3"):
        table.encode_negative(3, [1, 2], CPU, torch.float32)


@pytest.mark.parametrize("given", [None, "cat", 1.0, True, [], [1, None], [[1]], 2**40])
def test_what_is_no_class_is_refused(given: Any) -> None:
    with pytest.raises(InputError):
        ClassEmbedder(n_classes=6, embed_dim=4).count(given)


@pytest.mark.parametrize("given", [6, -1, [0, 6]])
def test_classes_that_do_not_exist_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match="from 0 to 5"):
        tokens(ClassEmbedder(n_classes=6, embed_dim=4), given)


# -- semantic maps


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("bias", [True, False])
def test_labels_are_rescaled_like_one_hot_maps(method: str, bias: bool) -> None:
    net = Rescaler(n_stages=2, in_channels=7, out_channels=3, method=method, bias=bias)
    labels = torch.randint(0, 7, (2, 16, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = F.one_hot(labels, 7).permute(0, 3, 1, 2).float()
        for _ in range(2):
            expected = F.interpolate(expected, scale_factor=0.5, mode=method)
        assert net.channel_mapper is not None
        expected = net.channel_mapper(expected)
        found = net(labels)
        soft = net(F.one_hot(labels, 7).permute(0, 3, 1, 2).float())
    assert found.shape == (2, 3, 4, 6)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(soft, expected, atol=1e-6)


def test_channels_may_stay_as_they_are() -> None:
    net = Rescaler(n_stages=1, in_channels=3)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(net(x), F.interpolate(x, scale_factor=0.5, mode="bilinear"))
    assert net(torch.zeros(1, 8, 8, dtype=torch.int64))[0, 0].eq(1).all()
    assert net.channels == 3


@torch.no_grad()
def test_maps_may_be_pictures_arrays_tensors_and_lists() -> None:
    net = Rescaler(n_stages=1, in_channels=5, out_channels=2)
    plain = np.arange(64, dtype=np.uint8).reshape(8, 8) % 5
    expected = net(torch.from_numpy(plain.astype(np.int64))[None])
    forms: list[Any] = [
        plain,
        plain[None],
        plain.astype(np.int32),
        torch.from_numpy(plain),
        Image.fromarray(plain),
        [Image.fromarray(plain)],
        F.one_hot(torch.from_numpy(plain).long(), 5).permute(2, 0, 1).float(),
    ]
    for form in forms:
        assert net.count(form) == 1
        assert torch.allclose(channels(net, form), expected, atol=1e-6)
    assert net.count([plain, plain]) == 2
    assert channels(net, [plain, torch.from_numpy(plain)]).shape == (2, 2, 4, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Image.new("RGB", (8, 8)), "one channel"),
        ("map.png", "picture, an array or a tensor"),
        (None, "picture, an array or a tensor"),
        ([], "no semantic maps"),
        (np.full((8, 8), 5), "labels from 0 to 4 but has 5 to 5"),
        (np.full((8, 8), -1), "labels from 0 to 4"),
        (torch.zeros(1, 4, 8, 8), "a channel per label"),
        (torch.zeros(2, 2), "whole numbers, labels"),
        ([np.zeros((8, 8), int), np.zeros((4, 4), int)], "different sizes"),
    ],
)
def test_what_is_no_map_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        channels(Rescaler(n_stages=1, in_channels=5, out_channels=2), given)


def test_maps_are_guided_by_other_maps_alone() -> None:
    net = Rescaler(n_stages=1, in_channels=5, out_channels=2)
    with pytest.raises(InputError, match="trained with maps alone"):
        net.encode_negative(1, None, CPU, torch.float32)
    other = net.encode_negative(2, np.zeros((4, 4), int), CPU, torch.float32).channels
    assert other is not None and other.shape == (2, 2, 2, 2)


# -- layouts


def small_encoder() -> LayoutEncoder:
    sizes = {"vocab_size": 100, "max_position_embeddings": 8, "d_model": 6}
    return LayoutEncoder(**sizes, encoder_layers=1, encoder_ffn_dim=8, dropout=0.0).eval()


@torch.no_grad()
def test_layouts_are_read_as_tokens() -> None:
    encoder = small_encoder()
    layout = Layout([Box(label=4, x=0, y=0, width=0.5, height=1)])
    assert encoder.count(layout) == 1 and encoder.count([layout, Layout()]) == 2
    ids = torch.tensor([layout.tokens(vocabulary=100, length=8)])
    assert torch.equal(tokens(encoder, layout), encoder(ids)[0])
    empty = encoder.encode_negative(2, None, CPU, torch.float32).tokens
    assert empty is not None
    assert torch.equal(empty, tokens(encoder, [Layout(), Layout()]))
    for wrong in (None, [], "cat", [layout, 3], {"boxes": []}):
        with pytest.raises(InputError, match="Layout"):
            encoder.count(wrong)


def test_the_published_layout_encoder_is_the_default() -> None:
    with torch.device("meta"):
        encoder = LayoutEncoder()
    assert encoder.config.d_model == 512 and len(encoder.model.layers) == 16
    assert encoder.model.embed_tokens.weight.shape == (8192, 512)
    assert encoder.model.embed_positions.weight.shape == (92, 512)


# -- all


@pytest.mark.parametrize(
    "made",
    [
        ClassEmbedder(n_classes=3, embed_dim=2, unconditional_class=None),
        Rescaler(n_stages=3, in_channels=4, out_channels=2, bias=True),
        small_encoder(),
    ],
    ids=lambda made: type(made).__name__,
)
def test_conditioners_are_saved_and_loaded(tmp_path: Path, made: Any) -> None:
    made.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path)
    assert again.config == made.config
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ClassEmbedder(n_classes=0),
        lambda: ClassEmbedder(n_classes=3, unconditional_class=3),
        lambda: ClassEmbedder(n_classes=10_000_000, embed_dim=16_384),
        lambda: ClassEmbedder(classes=3),
        lambda: Rescaler(n_stages=-1),
        lambda: Rescaler(method="trilinear"),
        lambda: Rescaler(multiplier=0),
        lambda: LayoutEncoder(encoder_layers=10_000),
        lambda: LayoutEncoder(activation_function="geglu"),
    ],
)
def test_impossible_configurations_are_refused(build: Any) -> None:
    with pytest.raises(ConfigError):
        build()
