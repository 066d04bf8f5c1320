"""Classes, layouts, semantic maps and texts from original files: as in plain functions.

No oracle draws with these models any more, so they are written down once more in `plain_ldm`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sfumato
from sfumato import Box, CheckpointError, InputError, Layout
from sfumato.checkpoints.inspection import inspect_file
from sfumato.checkpoints.original.convert import read_parts, write_file, write_folder
from tests.parity.latent_files import KINDS, PUBLISHED, Plain, small
from tests.parity.networks import relative_error, shapes
from tests.parity.official_files import write_holes
from tests.parity.test_ldm_bert import WORDS

CASES = [(kind, seed) for seed in range(5) for kind in KINDS]


def write(model: Plain, path: Path) -> Path:
    """A file as the original code saves one."""
    betas = {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000)}
    tensors = {**model.weights, **betas}
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 1}, path)
    else:
        save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    return path


def load(path: Path, **more: Any) -> Any:
    kind = sfumato.LatentDiffusionPipeline
    if "text" in path.name:
        kind = sfumato.LDMTextToImagePipeline
        more = {"tokenizer": sfumato.BertTokenizer(WORDS), **more}
    pipe = kind.from_single_file(path, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def case(kind: str, seed: int, tmp_path: Path) -> tuple[Plain, Any, Any, Tensor]:
    """A small model in plain functions and as loaded; what to draw, for each of them."""
    rng = random.Random(seed)
    model = Plain.make(small(kind, seed), seed)
    suffix = ".ckpt" if seed % 2 else ".safetensors"
    pipe = load(write(model, tmp_path / f"{kind}{suffix}"))
    config = model.config["condition"]
    if kind == "class":
        labels = [rng.randrange(config["n_classes"]) for _ in range(2)]
        return model, pipe, labels, torch.tensor(labels)
    if kind == "semantic":
        maps = torch.randint(0, config["in_channels"], (2, 32, 48), generator=generator(seed))
        return model, pipe, maps, maps
    if kind == "text":
        texts = ["the cat on a dog", "painting of cats"]
        sizes = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
        return model, pipe, texts, pipe.tokenizer(texts, **sizes).input_ids
    boxes = [Box(label=rng.randrange(100), x=0.1, y=rng.random() / 2, width=0.3, height=0.5)]
    layouts = [Layout(boxes), Layout(boxes * 2)]
    sizes = {"vocabulary": config["vocab_size"], "length": config["max_seq_len"]}
    return model, pipe, layouts, torch.tensor([layout.tokens(**sizes) for layout in layouts])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_for(model: Plain, size: tuple[int, int], seed: int) -> Tensor:
    factor = 2 ** (len(model.config["first_stage"]["ch_mult"]) - 1)
    shape = (2, model.config["unet"]["out_channels"], size[0] // factor, size[1] // factor)
    return torch.randn(shape, generator=generator(seed))


@pytest.mark.parametrize(("kind", "seed"), CASES)
@torch.no_grad()
def test_networks_compute_what_the_plain_functions_do(kind: str, seed: int, tmp_path: Path) -> None:
    model, pipe, what, given = case(kind, seed, tmp_path)
    x = latents_for(model, (32, 48), seed)
    t = torch.tensor([7.0, 640.0])
    told = model.condition(given)
    expected = model.predict(x, t, told)
    if kind == "text":
        own = pipe.bert(given)[0]
    else:
        made = pipe.conditioner.encode(what, torch.device("cpu"), torch.float32)
        own = made.tokens if made.channels is None else made.channels
        assert len(made.parts()) == 1
    assert relative_error(own, told) < 1e-5
    if kind == "semantic":
        actual = pipe.unet(torch.cat([x, own], 1), t).sample
    else:
        actual = pipe.unet(x, t, encoder_hidden_states=own).sample
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize(("kind", "seed"), CASES[: 3 * len(KINDS)])
@torch.no_grad()
def test_pictures_are_those_of_the_plain_functions(kind: str, seed: int, tmp_path: Path) -> None:
    model, pipe, what, given = case(kind, seed, tmp_path)
    size = (32, 48)
    latents, steps = latents_for(model, size, seed), 2 + seed
    guided = kind in ("class", "layout", "text") and seed > 0
    scale, against = (2.5, negative(model, pipe)) if guided else (1.0, None)
    expected = model.draw(latents, given, steps, scale, against)
    call: dict[str, Any] = {"latents": latents, "num_inference_steps": steps, "output_type": "pt"}
    if kind == "text":
        factor = 8 / pipe.vae_scale_factor  # sizes are told in eights of a latent there
        call |= {"height": round(size[0] * factor), "width": round(size[1] * factor)}
    elif kind != "semantic":
        call |= {"height": size[0], "width": size[1]}
    actual = pipe(what, guidance_scale=scale, **call).images
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-4
    assert expected.std() > 0.01


def negative(model: Plain, pipe: Any) -> Tensor:
    """What guidance goes away from: no class, no boxes, no words."""
    config = model.config["condition"]
    if model.config["kind"] == "class":
        return torch.tensor([config["n_classes"] - 1] * 2)
    if model.config["kind"] == "text":
        sizes = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
        return pipe.tokenizer(["", ""], **sizes).input_ids
    sizes = {"vocabulary": config["vocab_size"], "length": config["max_seq_len"]}
    return torch.tensor([Layout().tokens(**sizes)] * 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_of_the_published_size_becomes_the_published_networks(
    name: str, tmp_path: Path
) -> None:
    config = PUBLISHED[name]
    model = Plain.make(config, device="meta")
    listed = {key: tuple(tensor.shape) for key, tensor in model.weights.items()}
    kind = "text" if config["kind"] == "text" else name
    path = write_holes(listed, tmp_path / f"{kind}.safetensors")
    pipe = load(path, torch_dtype="auto", check_finite=False)
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(networks) == 3
    found = sum(tensor.numel() for part in networks for tensor in part.state_dict().values())
    assert found == sum(tensor.numel() for tensor in model.weights.values())
    unet, heads = pipe.unet.config, config["unet"].get("num_heads")
    widths = [config["unet"]["model_channels"] * m for m in config["unet"]["channel_mult"]]
    assert list(unet.block_out_channels) == widths
    if config["kind"] == "semantic":
        assert list(unet.attention_head_dim) == [width // 8 for width in widths]
    elif heads is None:
        assert list(unet.attention_head_dim) == [width // 32 for width in widths]
    else:
        assert unet.attention_head_dim == heads
    assert unet.sample_size * pipe.vae_scale_factor == config["size"]
    schedule = pipe.scheduler.config
    assert (schedule.beta_start, schedule.beta_end) == config["betas"]
    assert schedule.beta_schedule == "scaled_linear"
    assert pipe.vae.config.scaling_factor == config.get("scale_factor", 1.0)
    info = inspect_file(path, hashes=False)
    assert "atent diffusion" in str(info.description) + str(info.base_model)


def test_folders_keep_all_kinds(tmp_path: Path) -> None:
    for kind in KINDS:
        model, pipe, what, _ = case(kind, 2, tmp_path)
        pipe.save_pretrained(tmp_path / "folder")
        again = sfumato.DiffusionPipeline.from_pretrained(tmp_path / "folder")
        again.set_progress_bar_config(disable=True)
        assert type(again) is type(pipe)
        latents = latents_for(model, (32, 32), 0)
        sizes = {"height": 32, "width": 32}
        if kind == "text":
            sizes = dict.fromkeys(sizes, 32 * 8 // pipe.vae_scale_factor)
        what = what[:, :, :32] if kind == "semantic" else what
        call = {"num_inference_steps": 1, "latents": latents, "output_type": "np", **sizes}
        assert np.array_equal(again(what, **call).images, pipe(what, **call).images)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_saved_as_it_was_loaded(kind: str, tmp_path: Path) -> None:
    model, pipe, _, _ = case(kind, 3, tmp_path)
    pipe.save_single_file(tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == model.weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.weights.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_converted_to_a_folder_and_back(kind: str, tmp_path: Path) -> None:
    model, pipe, what, _ = case(kind, 4, tmp_path)
    parts = read_parts(tmp_path / f"{kind}.safetensors")
    write_folder(parts, tmp_path / "folder")
    more = {"tokenizer": pipe.tokenizer} if kind == "text" else {}
    again = sfumato.DiffusionPipeline.from_pretrained(tmp_path / "folder", **more)
    again.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 1, "output_type": "np"}
    latents = latents_for(model, (32, 48), 0)
    if kind != "semantic":
        factor = 8 if kind == "text" else pipe.vae_scale_factor
        call |= {"height": latents.shape[2] * factor, "width": latents.shape[3] * factor}
    expected = pipe(what, latents=latents, **call).images
    assert np.array_equal(again(what, latents=latents, **call).images, expected)
    write_file(read_parts(tmp_path / "folder"), tmp_path / "again.safetensors")
    tensors = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.weights.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_loaded_alone(kind: str, tmp_path: Path) -> None:
    _, pipe, _, _ = case(kind, 3, tmp_path)
    file = tmp_path / f"{kind}.ckpt"
    for network in (pipe.unet, pipe.vae, pipe.conditioner):
        alone = type(network).from_single_file(file)
        assert alone.config == network.config
        state = network.state_dict()
        assert all(torch.equal(state[name], t) for name, t in alone.state_dict().items())


def test_the_base_of_all_pipelines_finds_the_class(tmp_path: Path) -> None:
    case("class", 2, tmp_path)
    pipe = sfumato.DiffusionPipeline.from_single_file(tmp_path / "class.safetensors")
    assert type(pipe) is sfumato.LatentDiffusionPipeline
    with pytest.raises(CheckpointError, match="of a class"):
        sfumato.StableDiffusionPipeline.from_single_file(tmp_path / "class.safetensors")


def test_a_text_model_without_its_tokenizer_says_where_to_get_one(tmp_path: Path) -> None:
    path = write(Plain.make(small("text", 1), 1), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"vocab\.txt"):
        sfumato.LDMTextToImagePipeline.from_single_file(path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    pipe = sfumato.LDMTextToImagePipeline.from_single_file(path)
    assert pipe.tokenizer.get_vocab() == {word: i for i, word in enumerate(WORDS)}


def test_classes_of_the_older_model_cannot_be_guided(tmp_path: Path) -> None:
    config = small("class", 1)
    config["condition"] = {"n_classes": 1000, "embed_dim": 24}
    pipe = load(write(Plain.make(config, 1), tmp_path / "m.safetensors"))
    assert shapes(pipe.conditioner) == {"embedding.weight": (1000, 24)}
    with pytest.raises(InputError, match="trained with classes alone"):
        pipe(3, guidance_scale=2.0, num_inference_steps=1)
