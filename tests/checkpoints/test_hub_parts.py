"""Single networks, schedulers, tokenizers, adapters, embeddings and files by name on a hub."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as safetensors

from sfumato import (
    AutoencoderKL,
    AutoencoderTiny,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    DDIMScheduler,
    InputError,
    ModelNotFoundError,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from sfumato.checkpoints.find_file import Wanted, find_file
from sfumato.checkpoints.hub_names import HubOptions
from tests.checkpoints.hub_server import Hub, files_below
from tests.checkpoints.tiny import TEXT, VAE, byte_tokenizer, tiny_pipeline

NAME = "someone/tiny"


@pytest.mark.parametrize(
    ("part", "subfolder", "expected"),
    [
        (UNet2DConditionModel, "unet", ["config.json", "diffusion_pytorch_model.safetensors"]),
        (AutoencoderKL, "./vae/", ["config.json", "diffusion_pytorch_model.safetensors"]),
        (CLIPTextModel, "text_encoder", ["config.json", "model.safetensors"]),
        (DDIMScheduler, "scheduler", ["scheduler_config.json"]),
        (
            CLIPTokenizer,
            "tokenizer",
            ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"],
        ),
    ],
)
def test_a_part_of_a_pipeline_is_fetched_alone(
    hub: Hub, published: dict[str, bytes], part: Any, subfolder: str, expected: list[str]
) -> None:
    hub.add(NAME, published)
    loaded = part.from_pretrained(NAME, subfolder=subfolder)
    assert isinstance(loaded, part)
    assert hub.fetched() == [f"{subfolder.strip('./')}/{name}" for name in expected]
    part.from_pretrained(NAME, subfolder=subfolder, local_files_only=True)
    assert hub.requests == []


def test_parts_published_alone_need_no_subfolder(hub: Hub, tmp_path: Path) -> None:
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 8}
    networks = {
        "vae": AutoencoderKL(VAE),
        "tiny-vae": AutoencoderTiny(encoder_block_out_channels=[4], num_encoder_blocks=[1],
                                    decoder_block_out_channels=[4], num_decoder_blocks=[1]),
        "text": CLIPTextModel(TEXT),
        "vision": CLIPVisionModelWithProjection(vision),
        "settings": CLIPImageProcessor(size=8, crop_size=8),
    }  # fmt: skip
    for name, network in networks.items():
        network.save_pretrained(tmp_path / name)
        hub.add(f"someone/{name}", files_below(tmp_path / name))
        loaded = type(network).from_pretrained(f"https://huggingface.co/someone/{name}")
        assert loaded.config == network.config
        assert hub.fetched() == sorted(p.name for p in (tmp_path / name).iterdir())


def test_a_forgotten_subfolder_is_suggested(hub: Hub, published: dict[str, bytes]) -> None:
    hub.add(NAME, published)
    with pytest.raises(ModelNotFoundError, match=r"It has one in scheduler: choose with `subfold"):
        DDIMScheduler.from_pretrained(NAME)
    with pytest.raises(ModelNotFoundError, match=r"in text_encoder, unet, vae: choose"):
        UNet2DConditionModel.from_pretrained(NAME)
    with pytest.raises(ModelNotFoundError, match=r"no weights: no file named.*fp8.safetensors"):
        UNet2DConditionModel.from_pretrained(NAME, subfolder="unet", variant="fp8")
    with pytest.raises(ModelNotFoundError, match=r"no file 'vae/vocab.json'.*in tokenizer"):
        CLIPTokenizer.from_pretrained(NAME, subfolder="vae")
    assert hub.fetched() == []


# -- adapters and embeddings ---------------------------------------------------------------------


def lora(value: float = 1.0) -> bytes:
    layer = "unet.mid_block.attentions.0.proj_in"
    down, up = torch.full((2, 16, 1, 1), value), torch.ones(16, 2, 1, 1)
    return safetensors({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up})


def test_a_lora_is_found_by_its_usual_name_its_name_or_alone(hub: Hub) -> None:
    pipe = tiny_pipeline()
    usual = "pytorch_lora_weights.safetensors"
    hub.add("a/usual", {usual: lora(), "other.safetensors": b"", "README.md": b"", "x.bin": b""})
    hub.add(
        "a/several",
        {"one.safetensors": lora(), "two.safetensors": b"", "sub/only.safetensors": lora(2.0)},
    )
    peft = {"adapter_model.safetensors": lora(), "adapter_config.json": b'{"r": 2}'}
    hub.add("a/peft", peft)
    for name, keywords, expected in (
        ("a/usual", {}, [usual]),
        ("a/several", {"weight_name": "one.safetensors"}, ["one.safetensors"]),
        ("a/several", {"subfolder": "sub"}, ["sub/only.safetensors"]),
        ("a/peft", {}, sorted(peft)),
        ("a/several/blob/main/sub/only.safetensors", {"force_download": True},
         ["sub/only.safetensors"]),
    ):  # fmt: skip
        pipe.load_lora_weights(name, **keywords)
        assert hub.fetched() == expected
        assert pipe.get_active_adapters()
        pipe.unload_lora_weights()
    with pytest.raises(
        ModelNotFoundError, match=r"'a/several' has several files: one.*weight_name"
    ):
        pipe.load_lora_weights("a/several")
    with pytest.raises(ModelNotFoundError, match=r"no file 'onee.safetensors'.*'one.safetensors'"):
        pipe.load_lora_weights("a/several", weight_name="onee.safetensors")
    with pytest.raises(InputError, match="no name of something in"):
        pipe.load_lora_weights("a/several", weight_name="../one.safetensors")
    assert hub.fetched() == []


def test_a_concept_of_the_library_adds_its_word(hub: Hub) -> None:
    pipe = tiny_pipeline()
    stored = io.BytesIO()
    torch.save({"<cat-toy>": torch.arange(12.0)}, stored)
    concept = {
        "README.md": b"",
        "concept_images/0.jpeg": b"JPEG",
        "learned_embeds.bin": stored.getvalue(),
        "token_identifier.txt": b"<cat-toy>",
    }
    hub.add("sd-concepts-library/cat-toy", concept)
    hub.add("sd-concepts-library/other", {"mine.safetensors": safetensors({"<x>": torch.ones(12)})})
    pipe.load_textual_inversion("sd-concepts-library/cat-toy", hf_token="secret")
    assert {asked.token for asked in hub.requests} == {"Bearer secret"}
    assert hub.fetched() == ["learned_embeds.bin"]
    row = pipe.tokenizer.convert_tokens_to_ids("<cat-toy>")
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[row], torch.arange(12.0))
    pipe.unload_textual_inversion()
    both = ["sd-concepts-library/cat-toy", "sd-concepts-library/other"]
    pipe.load_textual_inversion(both, token=["<one>", "<two>"])
    assert hub.fetched() == ["mine.safetensors"]
    assert {"<one>", "<two>"} <= set(pipe.tokenizer.get_vocab())


def test_other_files_are_found_with_names_of_their_own(hub: Hub, cache: Path) -> None:
    files = {"models/adapter.bin": b"1", "models/image_encoder/config.json": b"{}"}
    hub.add("a/ip", files)
    found = find_file("a/ip", Wanted(), subfolder="models", weight_name="adapter.bin")
    assert found.read_bytes() == b"1" and found.is_relative_to(cache)
    elsewhere = HubOptions(cache_dir=cache / "other")
    assert find_file("a/ip", Wanted(), elsewhere, subfolder="models").is_relative_to(
        cache / "other"
    )


# -- single files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/someone/files/blob/main/deep/vae.safetensors",
        "https://huggingface.co/someone/files/resolve/main/deep/vae.safetensors?download=true",
        "hf.co/someone/files/deep/vae.safetensors",
        "someone/files/blob/main/deep/vae.safetensors",
    ],
)
def test_a_file_is_fetched_by_its_address(hub: Hub, address: str) -> None:
    network = AutoencoderKL(VAE)
    stored = safetensors(network.state_dict())
    hub.add("someone/files", {"deep/vae.safetensors": stored, "other.ckpt": b""})
    loaded = AutoencoderKL.from_single_file(address, **network.config.to_dict())
    assert hub.fetched() == ["deep/vae.safetensors"]
    expected = network.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    fields = network.config.to_dict()
    again = AutoencoderKL.from_single_file(address, local_files_only=True, **fields)
    assert again.config == loaded.config
    assert hub.requests == []


def test_configurations_of_a_model_of_the_hub_come_without_its_weights(
    hub: Hub, published: dict[str, bytes]
) -> None:
    hub.add(NAME, published)
    stored = safetensors(AutoencoderKL(VAE).state_dict())
    hub.add("someone/files", {"vae.safetensors": stored})
    address = "someone/files/blob/main/vae.safetensors"
    loaded = AutoencoderKL.from_single_file(address, config=NAME, subfolder="vae", revision="main")
    assert loaded.config.block_out_channels == tuple(VAE["block_out_channels"])
    fetched = hub.fetched()
    assert "vae/config.json" in fetched and "tokenizer/vocab.json" in fetched
    assert [name for name in fetched if name.endswith((".safetensors", ".bin", ".ckpt"))] == [
        "vae.safetensors"
    ]


def test_the_revision_of_an_address_counts_unless_another_is_given(hub: Hub) -> None:
    repository = hub.add("someone/files", {"x.bin": b"main"})
    repository.revisions |= {"refs/pr/2": {"x.bin": b"proposal"}, "v1": {"x.bin": b"first"}}
    address = "someone/files/blob/refs%2Fpr%2F2/x.bin"
    assert find_file(address, Wanted()).read_bytes() == b"proposal"
    assert find_file(address, Wanted(), HubOptions(revision="v1")).read_bytes() == b"first"


def test_addresses_of_other_places_are_refused(hub: Hub) -> None:
    for address in (
        "https://example.com/model.safetensors",
        "https://huggingface.co/datasets/a/b/resolve/main/x.safetensors",
        "https://huggingface.co/someone/files",
        "s3://bucket/model.safetensors",
    ):
        with pytest.raises(InputError, match="no address of a file"):
            StableDiffusionPipeline.from_single_file(address)
    assert hub.requests == []


def test_a_tokenizer_that_is_one_file_is_fetched_as_one(hub: Hub, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    config = (tmp_path / "tokenizer_config.json").read_bytes()
    hub.add(NAME, {"tokenizer.json": b"{}", "vocab.json": b"{}", "tokenizer_config.json": config})
    with pytest.raises(ValueError, match=r"tokenizer\.json"):  # it is empty
        CLIPTokenizer.from_pretrained(NAME)
    assert hub.fetched() == ["tokenizer.json", "tokenizer_config.json"]
