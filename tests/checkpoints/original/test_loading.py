"""Files in the original layout as they are found in the wild."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from sfumato.checkpoints.original.loading import open_checkpoint
from sfumato.checkpoints.original.parts import averaged_name
from sfumato.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    UnknownKeywordError,
    WeightsMismatchError,
)
from sfumato.models.base import ModelMixin
from tests.checkpoints.original.synthetic import (
    assert_same,
    checkpoint_tensors,
    networks,
    original_yaml,
    predicting,
    small_configs,
    with_average,
    write,
)

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer."


# Containers


@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_checkpoint_of_lightning_loads(
    tmp_path: Path,
    v1: dict[str, Tensor],
    v1_networks: dict[str, nn.Module],
    lightning_content: dict[str, Any],
    legacy: bool,
) -> None:
    path = tmp_path / "last.ckpt"
    content = {**lightning_content, "state_dict": v1}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    pipe = StableDiffusionPipeline.from_single_file(path)
    for part, network in v1_networks.items():
        assert_same(getattr(pipe, part), network)


@pytest.fixture
def lightning_content(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What training programs leave beside the weights, with classes that are gone when it loads."""
    import enum
    import sys
    import types

    import numpy

    modules = {
        name: types.ModuleType(name)
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "omegaconf", "my_training")
    }
    callbacks, omegaconf, mine = (
        modules[n] for n in ("pytorch_lightning.callbacks", "omegaconf", "my_training")
    )

    class ModelCheckpoint:
        def __init__(self) -> None:
            self.best_model_score = torch.tensor(0.25)
            self.dirpath = Path("logs")

        def __setstate__(self, state: object) -> None:
            raise AssertionError("a class of the file was run")

    class DictConfig(dict[str, Any]):
        def __reduce__(self) -> tuple[Any, ...]:
            return DictConfig, (dict(self),), {"_metadata": {"ref_type": Any}}

    class Stage(enum.Enum):
        FIT = "fit"

    class Config:
        pass

    for module, cls in (
        (callbacks, ModelCheckpoint),
        (omegaconf, DictConfig),
        (mine, Stage),
        (mine, Config),
    ):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    parameter = nn.Parameter(torch.randn(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    yield {
        "epoch": 3,
        "global_step": 4700,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {ModelCheckpoint: {"monitor": "loss", "callback": ModelCheckpoint()}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"best": numpy.float64(0.5), "array": numpy.arange(3.0)}],
        "hyper_parameters": DictConfig(lr=1e-4, stage=Stage.FIT),
        "hparams_type": Config,
        "tags": {"a", "b"},
        "rng": numpy.random.RandomState(1).get_state(),
        "when": __import__("datetime").datetime(2022, 8, 22),
    }


def test_a_table_in_a_table_is_found(tmp_path: Path, v1: dict[str, Tensor]) -> None:
    path = tmp_path / "m.ckpt"
    torch.save({"state_dict": {"state_dict": v1}}, path)
    assert open_checkpoint(path).family.name == "stable-diffusion-v1"


def test_the_name_of_a_file_does_not_decide_how_it_is_read(
    tmp_path: Path, v1: dict[str, Tensor]
) -> None:
    for written, name in ((".safetensors", "m.ckpt"), (".ckpt", "m.safetensors")):
        path = write(v1, tmp_path / f"w{written}").rename(tmp_path / name)
        assert open_checkpoint(path).family.name == "stable-diffusion-v1"


# Names


def test_text_encoders_of_very_old_merges_load(
    v1: dict[str, Tensor], v1_networks: dict[str, nn.Module]
) -> None:
    old = {name.replace(f"{CLIP}text_model.", CLIP): tensor for name, tensor in v1.items()}
    assert f"{CLIP}embeddings.token_embedding.weight" in old
    pipe = StableDiffusionPipeline.from_single_file(old)
    assert_same(pipe.text_encoder, v1_networks["text_encoder"])


@pytest.mark.parametrize("damaged", [torch.arange(77).half() + 0.3, torch.zeros(1, 77), None])
def test_position_ids_are_made_afresh_whatever_the_file_says(
    v1: dict[str, Tensor], v1_networks: dict[str, nn.Module], damaged: Tensor | None
) -> None:
    name = f"{CLIP}text_model.embeddings.position_ids"
    changed = {k: v for k, v in v1.items() if k != name}
    if damaged is not None:
        changed[name] = damaged
    pipe = StableDiffusionPipeline.from_single_file(changed)
    ids = torch.arange(50)[None]
    expected = v1_networks["text_encoder"](ids).last_hidden_state
    assert torch.equal(pipe.text_encoder(ids).last_hidden_state, expected)


def test_leftovers_of_training_are_no_news_and_unknown_names_are(
    v1: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"first_stage_model.loss.logvar": torch.zeros(()), "logvar": torch.zeros(1000)}
    extra["cond_stage_model.logit_scale"] = torch.zeros(())
    StableDiffusionPipeline.from_single_file({**v1, **extra})
    assert caplog.text == ""
    StableDiffusionPipeline.from_single_file({**v1, f"{UNET}extra.weight": torch.zeros(2)})
    assert "1 tensors have no place in the unet" in caplog.text
    assert f"{UNET}extra.weight" in caplog.text


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", ""])
def test_an_autoencoder_alone_loads_under_any_prefix(
    v1: dict[str, Tensor], v1_networks: dict[str, nn.Module], prefix: str, tmp_path: Path
) -> None:
    start = "first_stage_model."
    alone = {prefix + n.removeprefix(start): t for n, t in v1.items() if n.startswith(start)}
    alone["model_ema.decay"] = torch.tensor(0.99)
    alone["loss.logvar"] = torch.tensor(0.0)
    for path in (write(alone, tmp_path / "v.pt"), write(alone, tmp_path / "v.safetensors")):
        assert_same(AutoencoderKL.from_single_file(path), v1_networks["vae"])


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_network_under_todays_names_loads(
    v1_networks: dict[str, nn.Module], component: str
) -> None:
    network: Any = v1_networks[component]
    state = network.state_dict()
    fields = dict(network.config) if component != "text_encoder" else {}
    loaded = type(network).from_single_file(state, **fields)
    assert_same(loaded, network)


def test_autoencoders_under_the_names_of_early_diffusers_load(
    v1_networks: dict[str, nn.Module],
) -> None:
    vae: Any = v1_networks["vae"]
    news = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in vae.state_dict().items():
        for new, old in news.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        state[name] = tensor
    assert "encoder.mid_block.attentions.0.query.weight" in state
    assert_same(AutoencoderKL.from_single_file(state, **dict(vae.config)), vae)


def test_every_network_loads_by_itself(
    v1: dict[str, Tensor], v1_networks: dict[str, nn.Module]
) -> None:
    for part, cls in (
        ("unet", UNet2DConditionModel),
        ("vae", AutoencoderKL),
        ("text_encoder", CLIPTextModel),
    ):
        assert_same(cls.from_single_file(v1), v1_networks[part])
    bare = {n.removeprefix(UNET): t for n, t in v1.items() if n.startswith(UNET)}
    assert_same(UNet2DConditionModel.from_single_file(bare), v1_networks["unet"])
    with pytest.raises(InputError, match="ModelMixin has no original layout"):
        ModelMixin.from_single_file(v1)


# Stable Diffusion 2


def test_the_last_layer_of_open_clip_is_left_out_and_the_projection_too(
    v2: dict[str, Tensor],
) -> None:
    assert "cond_stage_model.model.transformer.resblocks.23.ln_1.weight" in v2
    pipe = StableDiffusionPipeline.from_single_file(v2)
    assert pipe.text_encoder.config.num_hidden_layers == 3
    assert pipe.text_encoder.config.hidden_act == "gelu"
    named = {
        name.replace("cond_stage_model.model.", "conditioner.embedders.0.model."): tensor
        for name, tensor in v2.items()
    }
    assert_same(StableDiffusionPipeline.from_single_file(named).text_encoder, pipe.text_encoder)


def test_the_second_generations_text_encoder_under_clips_names_loses_its_last_layer() -> None:
    configs = small_configs("stable-diffusion-v2")
    configs["text_encoder"] |= {"num_hidden_layers": 24, "hidden_size": 8, "num_attention_heads": 1}
    made = networks({"text_encoder": configs["text_encoder"]})
    state = {f"{CLIP}{name}": tensor for name, tensor in made["text_encoder"].state_dict().items()}
    model = open_checkpoint(state, config="stabilityai/stable-diffusion-2-1-base").network(
        "text_encoder"
    )
    assert model.config.num_hidden_layers == 23


# Averaged weights


def test_the_caller_chooses_between_the_averaged_and_the_last_weights(
    v1: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    both = with_average(v1)
    caplog.set_level(logging.INFO, "sfumato")
    plain = StableDiffusionPipeline.from_single_file(both)
    assert "`extract_ema=True` uses them" in caplog.text
    average = StableDiffusionPipeline.from_single_file(both, extract_ema=True)
    name = f"{UNET}out.2.weight"
    assert torch.equal(plain.unet.conv_out.weight, both[name])
    assert torch.equal(average.unet.conv_out.weight, both[averaged_name(name)])
    assert_same(average.vae, plain.vae)
    unet = UNet2DConditionModel.from_single_file(both, extract_ema=True)
    assert_same(unet, average.unet)


def test_averaged_weights_that_are_not_there_are_an_error(v1: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        StableDiffusionPipeline.from_single_file(v1, extract_ema=True)
    partly = with_average(v1)
    del partly[averaged_name(f"{UNET}out.2.weight")]
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        StableDiffusionPipeline.from_single_file(partly, extract_ema=True)


# Precision


def test_files_of_mixed_precision_become_one(v1: dict[str, Tensor], tmp_path: Path) -> None:
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    mixed = {
        name: tensor.to(kinds[i % 4]) if tensor.is_floating_point() else tensor
        for i, (name, tensor) in enumerate(v1.items())
    }
    for suffix in (".safetensors", ".ckpt"):
        path = write(mixed, tmp_path / f"mixed{suffix}")
        for dtype in (torch.float16, torch.bfloat16, None):
            pipe = StableDiffusionPipeline.from_single_file(path, torch_dtype=dtype)
            for part in (pipe.unet, pipe.vae, pipe.text_encoder):
                assert {p.dtype for p in part.parameters()} == {dtype or torch.float32}
        first = mixed[f"{UNET}input_blocks.0.0.weight"]
        assert torch.equal(pipe.unet.conv_in.weight, first.float())


def test_auto_keeps_the_files_precision_and_a_table_gives_each_part_its_own(
    v1: dict[str, Tensor], tmp_path: Path
) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in v1.items()}
    path = write(half, tmp_path / "half.safetensors")
    assert StableDiffusionPipeline.from_single_file(path, torch_dtype="auto").dtype == torch.float16
    assert StableDiffusionPipeline.from_single_file(path).dtype == torch.float32
    table = {"vae": torch.float32, "default": torch.bfloat16}
    pipe = StableDiffusionPipeline.from_single_file(path, dtype=table)
    assert (pipe.vae.dtype, pipe.unet.dtype) == (torch.float32, torch.bfloat16)


def test_numbers_that_are_not_finite_are_refused_where_they_are_used(
    v1: dict[str, Tensor], tmp_path: Path
) -> None:
    name = f"{UNET}out.2.bias"
    for suffix in (".safetensors", ".ckpt"):
        path = write({**v1, name: v1[name] * float("nan")}, tmp_path / f"nan{suffix}")
        with pytest.raises(
            CheckpointError, match=r"'model.diffusion_model.out.2.bias' holds 4 NaN"
        ):
            StableDiffusionPipeline.from_single_file(path)
        assert AutoencoderKL.from_single_file(path).dtype == torch.float32
        pipe = StableDiffusionPipeline.from_single_file(path, check_finite=False)
        assert pipe.unet.conv_out.bias.isnan().all()


# What the network predicts


@pytest.mark.parametrize("velocity", [False, True])
def test_stable_diffusion_2_says_by_its_weights_what_it_predicts(
    v2: dict[str, Tensor], velocity: bool
) -> None:
    pipe = StableDiffusionPipeline.from_single_file(predicting(v2, velocity))
    assert pipe.scheduler.config.prediction_type == ("v_prediction" if velocity else "epsilon")
    assert pipe.unet.config.sample_size == (96 if velocity else 64)
    assert type(pipe.scheduler).__name__ == ("DDIMScheduler" if velocity else "PNDMScheduler")


def test_the_caller_goes_before_all_clues(v2: dict[str, Tensor], v1: dict[str, Tensor]) -> None:
    load = StableDiffusionPipeline.from_single_file
    epsilon = load(predicting(v2, velocity=True), prediction_type="epsilon")
    assert epsilon.scheduler.config.prediction_type == "epsilon"
    assert epsilon.unet.config.sample_size == 64
    velocity = load(v1, prediction_type="v_prediction")
    assert velocity.scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(ConfigError, match="prediction_type"):
        load(v1, prediction_type="flow")


def test_metadata_markers_and_training_steps_are_clues(
    v1: dict[str, Tensor], v2: dict[str, Tensor], tmp_path: Path
) -> None:
    def predicted(tensors: dict[str, Tensor], **metadata: str) -> str:
        path = write(tensors, tmp_path / "m.safetensors", **metadata)
        return open_checkpoint(path).prediction.type

    says = "modelspec.prediction_type"
    assert predicted(v1) == "epsilon"
    assert predicted(v1, **{says: "v"}) == "v_prediction"
    assert predicted(predicting(v2, velocity=True), **{says: "epsilon"}) == "epsilon"
    assert predicted({**v1, "v_pred": torch.tensor([])}) == "v_prediction"
    statistic = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    without = {n: t for n, t in v2.items() if n != statistic}
    assert predicted(without) == "epsilon"
    for step, expected in ((875_000, "epsilon"), (140_000, "v_prediction")):
        torch.save({"state_dict": without, "global_step": step}, tmp_path / "m.ckpt")
        assert open_checkpoint(tmp_path / "m.ckpt").prediction.type == expected


def test_a_marker_of_zero_terminal_snr_rescales_the_schedule(v1: dict[str, Tensor]) -> None:
    marked = {**v1, "v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    scheduler = StableDiffusionPipeline.from_single_file(marked).scheduler
    assert isinstance(scheduler, DDIMScheduler)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr is True
    assert scheduler.config.timestep_spacing == "trailing"


def test_other_sizes_than_the_published_are_read_from_the_weights() -> None:
    config = {
        **small_configs("stable-diffusion-v1")["unet"],
        "block_out_channels": [32, 96, 64],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "transformer_layers_per_block": 2,
    }
    made = networks({"unet": config})
    loaded = UNet2DConditionModel.from_single_file(checkpoint_tensors(made, extras=False))
    assert_same(loaded, made["unet"])
    assert loaded.config.to_dict() == made["unet"].config.to_dict()  # type: ignore[union-attr, operator]


# Components and keywords


def test_components_by_keyword_replace_the_files_own(v1: dict[str, Tensor]) -> None:
    vae = AutoencoderKL.from_single_file(v1)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    tokenizer = CLIPTokenizer()
    without = {n: t for n, t in v1.items() if not n.startswith(("first_stage", "cond_stage"))}
    pipe = StableDiffusionPipeline.from_single_file(
        without, vae=vae, scheduler=scheduler, tokenizer=tokenizer, text_encoder=None
    )
    assert pipe.vae is vae and pipe.scheduler is scheduler and pipe.tokenizer is tokenizer
    assert pipe.text_encoder is None and pipe.safety_checker is None
    assert pipe.config.requires_safety_checker is False
    kept = StableDiffusionPipeline.from_single_file(v1, requires_safety_checker=True)
    assert kept.config.requires_safety_checker is True


@pytest.mark.parametrize("missing", ["first_stage_model.", "cond_stage_model."])
def test_a_part_that_is_missing_is_named_with_the_keyword_for_it(
    v1: dict[str, Tensor], missing: str
) -> None:
    cut = {n: t for n, t in v1.items() if not n.startswith(missing)}
    name = "vae" if missing.startswith("first") else "text_encoder"
    with pytest.raises(CheckpointError, match=rf"`{name}=\.\.\.`"):
        StableDiffusionPipeline.from_single_file(cut)


def test_a_misspelt_keyword_is_an_error_with_a_suggestion(v1: dict[str, Tensor]) -> None:
    with pytest.raises(UnknownKeywordError, match="Did you mean 'torch_dtype'"):
        StableDiffusionPipeline.from_single_file(v1, torch_dtpye=torch.float16)
    with pytest.raises(UnknownKeywordError, match="Did you mean 'sample_size'"):
        UNet2DConditionModel.from_single_file(v1, sampl_size=3)
    with pytest.raises(InputError, match="trust_remote_code"):
        StableDiffusionPipeline.from_single_file(v1, trust_remote_code=True)


def test_keywords_about_downloading_change_nothing_for_a_file(v1: dict[str, Tensor]) -> None:
    StableDiffusionPipeline.from_single_file(
        v1, local_files_only=True, cache_dir="x", token="t", revision="main", proxies=None,
        force_download=False, use_safetensors=True, low_cpu_mem_usage=True,
    )  # fmt: skip


@pytest.mark.filterwarnings("always::FutureWarning")
def test_deprecated_keywords_warn_and_still_work(v1: dict[str, Tensor]) -> None:
    def load(**keywords: Any) -> StableDiffusionPipeline:
        with pytest.warns(FutureWarning, match=f"`{next(iter(keywords))}`.*deprecated"):
            return StableDiffusionPipeline.from_single_file(v1, **keywords)

    assert load(scaling_factor=0.5).vae.config.scaling_factor == 0.5
    sized = load(image_size=768)
    assert (sized.unet.config.sample_size, sized.vae.config.sample_size) == (96, 768)
    assert load(upcast_attention=True).unet.config.upcast_attention is True
    assert load(num_in_channels=4).unet.config.in_channels == 4
    scheduler = load(scheduler_type="euler-ancestral").scheduler
    assert type(scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert load(original_config_file=original_yaml()).vae.config.scaling_factor == 0.2
    assert load(load_safety_checker=False).safety_checker is None
    for wrong in ({"scheduler_type": "fast"}, {"load_safety_checker": True}):
        with pytest.raises(InputError):
            load(**wrong)
    with pytest.raises(WeightsMismatchError):
        load(num_in_channels=9)
