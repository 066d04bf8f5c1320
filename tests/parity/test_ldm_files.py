"""The paper's own files, without a text: recognised, configured, and computed as written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel, UNet2DModel, VQModel
from sfumato.checkpoints.original.families import LATENT_FAMILIES, family
from sfumato.checkpoints.original.first_stages import first_stage, first_stage_names
from sfumato.checkpoints.original.loading import open_checkpoint
from sfumato.checkpoints.original.saving import original_tensors
from sfumato.errors import CheckpointError, InputError, WeightsMismatchError
from sfumato.pipelines.latent_diffusion import LatentDiffusionPipeline
from sfumato.pipelines.ldm import LDMPipeline
from sfumato.pipelines.ldm_inpaint import LDMInpaintPipeline
from sfumato.pipelines.ldm_superresolution import LDMSuperResolutionPipeline
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from tests.parity import plain_ldm as plain
from tests.parity.networks import relative_error
from tests.pipelines.tiny import seeded

VQ4 = {
    "embed_dim": 3,
    "n_embed": 8192,
    "ddconfig": {
        "double_z": False,
        "z_channels": 3,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}
NO_ATTENTION = {**VQ4, "ddconfig": {**VQ4["ddconfig"], "attn_type": "none"}}
KL8 = {
    "embed_dim": 4,
    "ddconfig": {**VQ4["ddconfig"], "double_z": True, "z_channels": 4, "ch_mult": [1, 2, 4, 4]},
}


def model(
    unet: dict[str, Any], stage: dict[str, Any], end: float, size: int = 64
) -> dict[str, Any]:
    """A file as the original code has them, as far as it is read."""
    return {
        "model": {
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "linear_start": 0.0015,
                "linear_end": end,
                "timesteps": 1000,
                "image_size": size,
                "channels": unet["out_channels"],
                "unet_config": {
                    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                    "params": {"image_size": size, "num_res_blocks": 2, **unet},
                },
                "first_stage_config": {"params": stage},
                "cond_stage_config": "__is_unconditional__",
            },
        }
    }


#: What the paper publishes, as in its configuration files, with whole millions of weights in the
#: UNet, as its tables have them. For super-resolution they count the first stage too: 169.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "latent-diffusion": (
        model(
            {
                "in_channels": 3,
                "out_channels": 3,
                "model_channels": 224,
                "attention_resolutions": [8, 4, 2],
                "channel_mult": [1, 2, 3, 4],
                "num_head_channels": 32,
            },
            VQ4,
            0.0195,
        ),
        274,
    ),
    "latent-diffusion-churches": (
        model(
            {
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 192,
                "attention_resolutions": [1, 2, 4, 8],
                "channel_mult": [1, 2, 2, 4, 4],
                "num_heads": 8,
                "use_scale_shift_norm": True,
                "resblock_updown": True,
            },
            KL8,
            0.0155,
            32,
        ),
        294,
    ),
    "latent-diffusion-super-resolution": (
        model(
            {
                "in_channels": 6,
                "out_channels": 3,
                "model_channels": 160,
                "attention_resolutions": [16, 8],
                "channel_mult": [1, 2, 2, 4],
                "num_head_channels": 32,
            },
            VQ4,
            0.0155,
        ),
        113,
    ),
    "latent-diffusion-inpainting": (
        model(
            {
                "in_channels": 7,
                "out_channels": 3,
                "model_channels": 256,
                "attention_resolutions": [8, 4, 2],
                "channel_mult": [1, 2, 3, 4],
                "num_heads": 8,
                "resblock_updown": True,
            },
            NO_ATTENTION,
            0.0205,
        ),
        387,
    ),
}
PIPELINES = {
    "latent-diffusion": LDMPipeline,
    "latent-diffusion-churches": LDMPipeline,
    "latent-diffusion-super-resolution": LDMSuperResolutionPipeline,
    "latent-diffusion-inpainting": LDMInpaintPipeline,
}


def walk(config: dict[str, Any], weights: plain.Weights) -> plain.Weights:
    """Every weight of a model, by one walk through it."""
    params = config["model"]["params"]
    unet, stage = params["unet_config"]["params"], params["first_stage_config"]["params"]
    meta = {"device": weights.device}
    with torch.no_grad():
        side = 2 ** len(unet["channel_mult"])
        x = torch.zeros(1, unet["in_channels"], side, side, **meta)
        plain.unet(weights, unet, x, torch.zeros(1))
        factor = 2 ** (len(stage["ddconfig"]["ch_mult"]) - 1)
        picture = torch.zeros(1, 3, 4 * factor, 4 * factor, **meta)
        z = plain.encode(weights, stage["ddconfig"], stage["embed_dim"], picture)
        if "n_embed" in stage:
            z = plain.quantise(weights, stage["n_embed"], z)
        plain.decode(weights, stage["ddconfig"], z[:, : stage["embed_dim"]])
    return weights


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_recognised_by_its_shapes(name: str) -> None:
    config, millions = PUBLISHED[name]
    weights = walk(config, plain.Weights(device="meta"))
    found = open_checkpoint(weights)
    assert found.family.name == name
    published = family(name)
    for component in ("unet", "vae"):
        made = found.config(component)
        known = dict(getattr(published, component))
        assert {key: _plain(made[key]) for key in known} == {k: _plain(v) for k, v in known.items()}
    own = {k: v for k, v in weights.items() if k.startswith("model.diffusion_model.")}
    assert sum(v.numel() for v in own.values()) // 10**6 == millions


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_configuration_file_says_the_same(name: str) -> None:
    config, _ = PUBLISHED[name]
    weights = walk(config, plain.Weights(device="meta"))
    without, said = open_checkpoint(weights), open_checkpoint(weights, original_config=config)
    for component in ("unet", "vae"):
        shapes, file = without.config(component), said.config(component)
        assert {k: _plain(v) for k, v in file.items()} == {k: _plain(v) for k, v in shapes.items()}
    from sfumato.checkpoints.original.companions import scheduler_config

    assert scheduler_config(said) == scheduler_config(without)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", first_stage_names())
def test_a_first_stage_is_recognised_by_its_shapes(name: str) -> None:
    kind, known = first_stage(name)
    cls: Any = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}[kind]
    with torch.device("meta"):
        tensors = original_tensors("vae", cls(**known), alone=True)
    assert ("quantize.embedding.weight" in tensors) == (kind == "VQModel")
    found = open_checkpoint(tensors, component="vae")
    made = found.config("vae")
    scaled = {"scaling_factor"} if name == "kl-f8" else set()
    for key in known.keys() - scaled - {"sample_size"}:
        assert _plain(made[key]) == _plain(known[key]), key
    assert found.family.class_of("vae") == kind


# Small models of every kind, against the plain functions


def small(name: str) -> dict[str, Any]:
    """The published model, narrow and shallow."""
    params = PUBLISHED[name][0]["model"]["params"]
    unet, stage = params["unet_config"]["params"], params["first_stage_config"]["params"]
    dd = stage["ddconfig"]
    mults = [1, 2] if unet["channel_mult"][-1] == unet["channel_mult"][-2] * 2 else [1, 2, 2]
    where = [2] if name.endswith("resolution") else [1, 2, 4][-len(mults) :]
    narrow = {
        **unet,
        "model_channels": 32,
        "channel_mult": mults,
        "num_res_blocks": 1,
        "attention_resolutions": where,
        **({"num_heads": 4} if "num_heads" in unet else {}),
    }
    stage = {**stage, "ddconfig": {**dd, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}}
    if "n_embed" in stage:
        stage["n_embed"] = 8
    return model(narrow, stage, params["linear_end"], 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, plain.Weights]]:
    """Small models in files, with what training leaves in them."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for seed, name in enumerate(PUBLISHED):
        weights = walk(small(name), plain.Weights(seed))
        path = folder / f"{name}.ckpt"
        content = {**weights, "betas": torch.zeros(1000), "model_ema.decay": torch.tensor(0.9999)}
        content["first_stage_model.loss.perceptual_loss.lin0.weight"] = torch.zeros(1)
        torch.save({"state_dict": content, "global_step": 1, "epoch": 0}, path)
        made[name] = path, weights
    return made


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_networks_of_a_file_compute_what_is_written_down(
    name: str, files: dict[str, tuple[Path, plain.Weights]]
) -> None:
    path, weights = files[name]
    config = small(name)
    params = config["model"]["params"]
    unet, stage = params["unet_config"]["params"], params["first_stage_config"]["params"]
    pipe: Any = PIPELINES[name].from_single_file(path, original_config=config)
    x, t = torch.randn(2, unet["in_channels"], 8, 12), torch.tensor([10.0, 700.0])
    assert relative_error(pipe.unet(x, t).sample, plain.unet(weights, unet, x, t)) < 1e-4
    picture = torch.randn(1, 3, 16, 24)
    encoded = pipe.vae.encode(picture)
    own = encoded.latents if "n_embed" in stage else encoded.latent_dist.parameters
    z = plain.encode(weights, stage["ddconfig"], stage["embed_dim"], picture)
    assert relative_error(own, z) < 1e-4
    z = z[:, : stage["embed_dim"]]
    seen = plain.quantise(weights, stage["n_embed"], z) if "n_embed" in stage else z
    expected = plain.decode(weights, stage["ddconfig"], seen)
    assert relative_error(pipe.vae.decode(z).sample, expected) < 1e-4


@pytest.mark.parametrize("kind", [LDMPipeline, LatentDiffusionPipeline])
@pytest.mark.parametrize("name", ["latent-diffusion", "latent-diffusion-churches"])
@torch.no_grad()
def test_a_file_draws_what_is_written_down(
    name: str, kind: Any, files: dict[str, tuple[Path, plain.Weights]]
) -> None:
    path, weights = files[name]
    config = small(name)
    params = config["model"]["params"]
    unet = params["unet_config"]["params"]
    pipe = kind.from_single_file(path, original_config=config)
    assert pipe.vae.config.scaling_factor == 1.0
    x = torch.randn(1, unet["in_channels"], 8, 8, generator=seeded(1))
    given: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent", "latents": x}
    drawn = pipe(**given).images
    expected = plain.ddim(
        lambda x, t: plain.unet(weights, unet, x, t),
        x,
        [751, 501, 251, 1],
        params["linear_start"],
        params["linear_end"],
    )
    assert relative_error(drawn, expected) < 1e-3


def test_the_factor_of_latents_found_in_training_is_read(
    files: dict[str, tuple[Path, plain.Weights]],
) -> None:
    _, weights = files["latent-diffusion-churches"]
    tensors = {**weights, "scale_factor": torch.tensor(0.2223)}
    pipe: Any = LDMPipeline.from_single_file(tensors)  # type: ignore[arg-type]
    assert pipe.vae.config.scaling_factor == pytest.approx(0.2223)


def test_averaged_weights_are_used_when_asked_for(
    files: dict[str, tuple[Path, plain.Weights]],
) -> None:
    from sfumato.checkpoints.original.parts import averaged_name

    _, weights = files["latent-diffusion"]
    averages = {averaged_name(k): v + 1 for k, v in weights.items() if k.startswith("model.")}
    plain_pipe: Any = LDMPipeline.from_single_file({**weights, **averages})  # type: ignore[arg-type]
    pipe: Any = LDMPipeline.from_single_file({**weights, **averages}, extract_ema=True)  # type: ignore[arg-type]
    assert torch.allclose(pipe.unet.conv_in.bias, plain_pipe.unet.conv_in.bias + 1)


def test_the_base_class_chooses_the_pipeline_that_a_file_is_made_for(
    files: dict[str, tuple[Path, plain.Weights]],
) -> None:
    for name, (path, _) in files.items():
        assert type(DiffusionPipeline.from_single_file(path)) is PIPELINES[name]


# Parts of files


def test_networks_are_loaded_alone(files: dict[str, tuple[Path, plain.Weights]]) -> None:
    path, weights = files["latent-diffusion"]
    unet = UNet2DModel.from_single_file(path)
    assert torch.equal(
        unet.conv_in.weight, weights["model.diffusion_model.input_blocks.0.0.weight"]
    )
    vq = VQModel.from_single_file(path)
    own = {k.removeprefix("first_stage_model."): v for k, v in weights.items()}
    alone = VQModel.from_single_file({k: v for k, v in own.items() if "diffusion" not in k})
    assert torch.equal(vq.quantize.embedding.weight, own["quantize.embedding.weight"])
    assert all(torch.equal(a, b) for a, b in zip(vq.parameters(), alone.parameters(), strict=True))
    assert alone.config.scaling_factor == 1.0
    kl = AutoencoderKL.from_single_file(files["latent-diffusion-churches"][0])
    assert kl.config.latent_channels == 4


def test_a_first_stage_takes_its_own_configuration_file(
    files: dict[str, tuple[Path, plain.Weights]], tmp_path: Path
) -> None:
    stage = small("latent-diffusion-inpainting")["model"]["params"]["first_stage_config"]["params"]
    path = tmp_path / "config.yaml"
    path.write_text(
        "model:\n  target: ldm.models.autoencoder.VQModel\n  params:\n"
        f"    embed_dim: 3\n    n_embed: 8\n    ddconfig: {stage['ddconfig']}\n"
    )
    file, _ = files["latent-diffusion-inpainting"]
    model = VQModel.from_single_file(file, original_config=path)
    assert model.config.mid_block_add_attention is False
    assert model.config.to_dict() == VQModel.from_single_file(file).config.to_dict()


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_go_back_into_the_original_layout_unchanged(
    name: str, files: dict[str, tuple[Path, plain.Weights]]
) -> None:
    path, weights = files[name]
    pipe: Any = PIPELINES[name].from_single_file(path, original_config=small(name))
    back = original_tensors("unet", pipe.unet) | original_tensors("vae", pipe.vae)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in back)


# What is refused


def test_a_file_of_another_kind_is_refused(files: dict[str, tuple[Path, plain.Weights]]) -> None:
    path, larger = files["latent-diffusion"][0], files["latent-diffusion-super-resolution"][0]
    with pytest.raises(CheckpointError, match="unconditional") as caught:
        StableDiffusionPipeline.from_single_file(path)
    assert "LDMPipeline.from_single_file" in str(caught.value)
    with pytest.raises(CheckpointError, match="super-resolution"):
        LDMPipeline.from_single_file(larger)
    with pytest.raises(CheckpointError, match="unconditional"):
        LDMInpaintPipeline.from_single_file(path)
    with pytest.raises(CheckpointError, match="holds a VQModel"):
        AutoencoderKL.from_single_file(path)
    with pytest.raises(CheckpointError, match="holds a UNet2DModel"):
        UNet2DConditionModel.from_single_file(path)
    with pytest.raises(CheckpointError, match="holds a AutoencoderKL"):
        VQModel.from_single_file(files["latent-diffusion-churches"][0])


def damaged() -> dict[str, tuple[Any, type[Exception]]]:
    """Changes to a file, and what loading it then raises."""
    unet = "model.diffusion_model."

    def without(*parts: str) -> Any:
        return lambda w: {k: v for k, v in w.items() if not any(p in k for p in parts)}

    def changed(name: str, value: Tensor) -> Any:
        return lambda w: {**w, name: value}

    return {
        "no first stage": (without("first_stage_model."), CheckpointError),
        "no output": (without("output_blocks."), CheckpointError),
        "half of the blocks": (without("output_blocks.3", "output_blocks.2"), CheckpointError),
        "no middle": (without("middle_block.0"), CheckpointError),
        "no codebook": (without("quantize"), CheckpointError),
        "qkv of another size": (
            changed(f"{unet}input_blocks.1.1.qkv.weight", torch.zeros(95, 32, 1)),
            WeightsMismatchError,
        ),
        "flat codebook": (
            changed("first_stage_model.quantize.embedding.weight", torch.zeros(24)),
            CheckpointError,
        ),
        "five channels": (
            changed(f"{unet}input_blocks.0.0.weight", torch.zeros(32, 5, 3, 3)),
            CheckpointError,
        ),
        "NaN": (changed(f"{unet}out.2.bias", torch.full((3,), torch.nan)), CheckpointError),
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_file_is_refused(name: str, files: dict[str, tuple[Path, plain.Weights]]) -> None:
    change, error = damaged()[name]
    with pytest.raises(error):
        LDMPipeline.from_single_file(change(dict(files["latent-diffusion"][1])))


def test_an_unknown_first_stage_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match="vq-f4"):
        first_stage("vq-f5")


def test_every_family_has_its_file() -> None:
    assert set(PUBLISHED) <= set(LATENT_FAMILIES)


# Out again


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_a_pipeline_saved_as_one_file_loads_as_it_was(name: str, tmp_path: Path) -> None:
    """The UNet has 32 channels, so that heads are found without a configuration file."""
    weights = walk(small(name), plain.Weights(3))
    pipe: Any = PIPELINES[name].from_single_file(weights)
    path = tmp_path / "model.safetensors"
    pipe.save_single_file(path, metadata={"note": "small"})
    again: Any = DiffusionPipeline.from_single_file(path)
    assert type(again) is PIPELINES[name]
    for component in ("unet", "vae"):
        own, other = getattr(pipe, component), getattr(again, component)
        assert own.config.to_dict() == other.config.to_dict()
        pairs = zip(own.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_become_folders_and_files_again(
    name: str, files: dict[str, tuple[Path, plain.Weights]], tmp_path: Path
) -> None:
    from sfumato.checkpoints.original.convert import read_parts, write_file, write_folder

    path, weights = files[name]
    write_folder(read_parts(path), tmp_path / "folder")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "folder")
    assert type(pipe) is PIPELINES[name]
    write_file(read_parts(tmp_path / "folder"), tmp_path / "file.safetensors")
    from safetensors.torch import load_file

    back = load_file(tmp_path / "file.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in back)


def test_info_tells_what_a_file_is(
    files: dict[str, tuple[Path, plain.Weights]], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from sfumato.checkpoints.inspection import inspect_file

    for name, (path, _) in files.items():
        info = inspect_file(path, hashes=False)
        assert (info.kind, info.base_model) == ("checkpoint", family(name).title)
        assert info.prediction_type == "epsilon"
        assert set(info.components) == {"unet", "vae"}
    weights = files["latent-diffusion"][1]
    stage = {k: v.contiguous() for k, v in weights.items() if k.startswith("first_stage_model.")}
    save_file({k.partition(".")[2]: v for k, v in stage.items()}, tmp_path / "vq.safetensors")
    info = inspect_file(tmp_path / "vq.safetensors", hashes=False)
    assert (info.kind, info.description) == ("vae", "a first stage with a codebook (VQ)")
