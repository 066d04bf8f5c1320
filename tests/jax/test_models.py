"""The models without a pipeline: random parameters, types, and ControlNets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.errors import InputError
from tests.graph.cases import relative_error
from tests.pipelines.tiny import tiny_controlnet, tiny_pipeline, tiny_unet

jax = pytest.importorskip("jax")

from sfumato.jax.controlnet import FlaxControlNetModel  # noqa: E402
from sfumato.jax.models import FlaxUNet2DConditionModel  # noqa: E402
from sfumato.jax.pipeline import FlaxStableDiffusionPipeline  # noqa: E402

KEY = jax.random.PRNGKey(0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return FlaxStableDiffusionPipeline.from_pretrained(folder)


def test_random_weights_are_those_of_a_file_but_for_their_numbers(loaded: tuple[Any, Any]) -> None:
    pipeline, params = loaded
    made = dict(params)
    for name in ("unet", "vae", "text_encoder"):
        made[name] = getattr(pipeline, name).init_weights(KEY)
        shapes = {key: array.shape for key, array in made[name].items()}
        assert shapes == {key: array.shape for key, array in params[name].items()}
    assert not np.array_equal(made["unet"]["conv_in.weight"], params["unet"]["conv_in.weight"])
    assert (made["unet"]["conv_norm_out.weight"] == 1).all()
    images = np.asarray(pipeline(pipeline.prepare_inputs("a cat"), made, KEY, 2).images)
    assert np.isfinite(images).all()
    assert images.std() > 0.01


def test_random_weights_follow_from_the_key(loaded: tuple[Any, Any]) -> None:
    vae = loaded[0].vae
    first, again, other = (
        vae.init_weights(jax.random.PRNGKey(seed))["decoder.conv_in.weight"] for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_mask_says_which_parameters_change_their_type(loaded: tuple[Any, Any]) -> None:
    pipeline, params = loaded
    mask = {name: name.startswith("conv_in") for name in params["unet"]}
    found = pipeline.unet.to_bf16(params["unet"], mask)
    assert found["conv_in.weight"].dtype == "bfloat16"
    assert found["conv_out.weight"].dtype == "float32"
    assert {array.dtype.name for array in pipeline.unet.to_fp32(found).values()} == {"float32"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"conditioning_channels": 1, "layers_per_block": 2, "use_linear_projection": True},
        {"controlnet_conditioning_channel_order": "bgr", "global_pool_conditions": True},
        {"attention_head_dim": (2, 4), "transformer_layers_per_block": 2},
    ],
)
@torch.no_grad()
def test_a_controlnet_steers_as_in_torch(fields: dict[str, Any], tmp_path: Path) -> None:
    net, unet = tiny_controlnet(seed=3, **fields), tiny_unet(seed=4, **shared(fields))
    net.save_pretrained(tmp_path / "net")
    unet.save_pretrained(tmp_path / "unet")
    flax_net, net_params = FlaxControlNetModel.from_pretrained(tmp_path / "net")
    flax_unet, unet_params = FlaxUNet2DConditionModel.from_pretrained(tmp_path / "unet")
    torch.manual_seed(0)
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    x, text = torch.randn(2, 4, 8, 6), torch.randn(2, 7, 32)
    picture = torch.rand(2, net.config.conditioning_channels, 8 * factor, 6 * factor)
    down, mid = net(x, 7, text, picture, 0.6, return_dict=False)
    names = ("down_block_additional_residuals", "mid_block_additional_residual")
    expected = unet(x, 7, text, **dict(zip(names, (down, mid), strict=True))).sample
    given = [array.numpy() for array in (x, text, picture)]

    def steer(net_params: Any, unet_params: Any, x: Any, text: Any, picture: Any) -> Any:
        found: Any = flax_net.apply({"params": net_params}, x, 7, text, picture, 0.6)
        added = dict(zip(names, found.values(), strict=True))
        drawn: Any = flax_unet.apply({"params": unet_params}, x, 7, text, **added)
        return found.down_block_res_samples, found.mid_block_res_sample, drawn.sample

    *features, last, sample = jax.tree.leaves(jax.jit(steer)(net_params, unet_params, *given))
    assert len(features) == len(down)
    for found, wanted in zip([*features, last, sample], [*down, mid, expected], strict=True):
        assert relative_error(np.asarray(found), wanted.numpy()) < 1e-5


def shared(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that the UNet of a ControlNet has too."""
    own = (
        "conditioning_channels",
        "controlnet_conditioning_channel_order",
        "global_pool_conditions",
    )
    return {name: value for name, value in fields.items() if name not in own}


def test_a_control_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    tiny_controlnet().save_pretrained(tmp_path)
    net, params = FlaxControlNetModel.from_pretrained(tmp_path)
    x, text = np.zeros((1, 4, 8, 8), np.float32), np.zeros((1, 7, 32), np.float32)
    with pytest.raises(InputError, match="made for latents of"):
        net.apply(params, x, 7, text, np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="`train` has to be False"):
        net.apply(params, x, 7, text, np.zeros((1, 3, 16, 16), np.float32), train=True)
    assert net.init_weights(KEY).keys() == params.keys()
