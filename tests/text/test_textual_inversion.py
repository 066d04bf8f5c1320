"""Textual inversion: every format of a file, what is refused, and nothing left behind."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from sfumato.errors import InputError, ModelNotFoundError, SfumatoError, TokenizerError
from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.text.embedding_files import read_embedding
from sfumato.text.tokenizer import CLIPTokenizer
from tests.pipelines.tiny import WIDTH, tiny_pipeline, tiny_text_encoder, weights_of

PROBE = "a <cat> and <DOG>_1, <dog> on a hill"


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    return tiny_pipeline(tokenizer=CLIPTokenizer(), text_encoder=tiny_text_encoder())


@pytest.fixture(scope="module")
def untouched() -> StableDiffusionPipeline:
    return tiny_pipeline(tokenizer=CLIPTokenizer(), text_encoder=tiny_text_encoder())


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def state(pipe: StableDiffusionPipeline) -> tuple[Any, ...]:
    """All that loading could change."""
    return (
        {i: str(token) for i, token in pipe.tokenizer.added_tokens_decoder.items()},
        len(pipe.tokenizer),
        pipe.tokenizer(PROBE).input_ids,
        pipe.text_encoder.config,
        weights_of(pipe.text_encoder),
    )


def assert_same(now: tuple[Any, ...], before: tuple[Any, ...]) -> None:
    assert now[:-1] == before[:-1]
    assert now[-1].keys() == before[-1].keys()
    assert all(torch.equal(now[-1][name], tensor) for name, tensor in before[-1].items())


def row(pipe: StableDiffusionPipeline, token: str) -> torch.Tensor:
    index = pipe.tokenizer.convert_tokens_to_ids(token)
    assert pipe.tokenizer(token).input_ids[1:-1] == [index]
    return pipe.text_encoder.get_input_embeddings().weight[index].detach()


def write_a1111(path: Path, value: Any) -> None:
    torch.save(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": value},
            "name": "<cat>",
            "step": 500,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        },
        path,
    )


def write_module(path: Path, value: torch.Tensor) -> None:
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(value)})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": parameters}, path)


def write_png(path: Path, value: torch.Tensor) -> None:
    text = json.dumps(
        {"string_to_param": {"*": {"TORCHTENSOR": value.tolist()}}, "name": "<cat>", "step": 1}
    )
    info = PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(text.encode()).decode())
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)


FORMATS: dict[str, Callable[[Path, torch.Tensor], None]] = {
    "learned_embeds.bin": lambda path, v: torch.save({"<cat>": v}, path),
    "learned_embeds.safetensors": lambda path, v: save_file({"<cat>": v}, path),
    "a1111.pt": write_a1111,
    "parameter.pt": lambda path, v: write_a1111(path, torch.nn.Parameter(v)),
    "<cat>.pt": write_module,
    "preview.png": write_png,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("count", [1, 3])
def test_every_format_is_read_and_unloading_leaves_no_trace(
    tmp_path: Path, pipe: StableDiffusionPipeline, name: str, count: int
) -> None:
    before, value = state(pipe), vectors(count, WIDTH)
    FORMATS[name](tmp_path / name, value)
    pipe.load_textual_inversion(tmp_path / name)
    tokens = ["<cat>", *(f"<cat>_{i}" for i in range(1, count))]
    for token, expected in zip(tokens, value, strict=True):
        assert torch.equal(row(pipe, token), expected)
    assert len(pipe.tokenizer) == before[1] + count == pipe.text_encoder.config.vocab_size
    written = pipe.maybe_convert_prompt("a <cat>!", pipe.tokenizer)
    assert written == f"a {' '.join(tokens)}!"
    pipe.unload_textual_inversion()
    assert_same(state(pipe), before)


def test_emb_params_and_bare_tensors_take_the_token_of_the_call(
    tmp_path: Path, pipe: StableDiffusionPipeline
) -> None:
    save_file({"emb_params": vectors(2, WIDTH)}, tmp_path / "style.safetensors")
    torch.save(vectors(WIDTH), tmp_path / "bare.pt")
    pipe.load_textual_inversion(str(tmp_path / "style.safetensors"), token="<style>")
    pipe.load_textual_inversion(tmp_path / "bare.pt", "<bare>")
    pipe.load_textual_inversion(vectors(1, WIDTH), token="<given>")
    assert torch.equal(row(pipe, "<style>_1"), vectors(2, WIDTH)[1])
    assert torch.equal(row(pipe, "<bare>"), vectors(WIDTH))
    assert torch.equal(row(pipe, "<given>"), vectors(1, WIDTH)[0])


def test_lists_load_together_and_one_can_go(pipe: StableDiffusionPipeline) -> None:
    before = state(pipe)
    pipe.load_textual_inversion([{"a": vectors(WIDTH)}, {"b": vectors(3, WIDTH)}], ["<x>", "<y>"])
    pipe.load_textual_inversion(vectors(2, WIDTH), token=["<s0>", "<s1>"])
    pipe.unload_textual_inversion("<y>")
    assert pipe.tokenizer.convert_tokens_to_ids(["<x>", "<s0>", "<s1>"]) == [49408, 49409, 49410]
    assert torch.equal(row(pipe, "<s1>"), vectors(2, WIDTH)[1])
    assert len(pipe.text_encoder.get_input_embeddings().weight) == 49411
    pipe.unload_textual_inversion(["<s0>", "<x>", "<s1>"])
    assert_same(state(pipe), before)


def test_folders_are_searched_for_the_usual_names(
    tmp_path: Path, pipe: StableDiffusionPipeline
) -> None:
    torch.save({"<bin>": vectors(WIDTH)}, tmp_path / "learned_embeds.bin")
    save_file({"<safe>": vectors(WIDTH)}, tmp_path / "learned_embeds.safetensors")
    (tmp_path / "sub").mkdir()
    save_file({"<sub>": vectors(WIDTH)}, tmp_path / "sub" / "other.safetensors")
    pipe.load_textual_inversion(tmp_path)
    pipe.load_textual_inversion(tmp_path, use_safetensors=False, cache_dir="ignored", hf_token="x")
    pipe.load_textual_inversion(tmp_path, subfolder="sub")
    for token in ("<safe>", "<bin>", "<sub>"):
        row(pipe, token)
    pipe.load_textual_inversion(tmp_path, "<named>", weight_name="learned_embeds.bin")
    with pytest.raises(ModelNotFoundError, match="other"):
        pipe.load_textual_inversion(tmp_path, "<no>", weight_name="other")
    with pytest.raises(InputError, match="no name of something"):
        pipe.load_textual_inversion(tmp_path / "sub", weight_name="../learned_embeds.bin")
    with pytest.raises(TypeError, match="weight_name"):
        pipe.load_textual_inversion(tmp_path, weigth_name="x")


def both(value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"clip_l": value, "clip_g": value}


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "width": ({"<cat>": vectors(768)}, None, r"width 32.*768 \(as for Stable Diffusion 1"),
    "width of 2.x": ({"<cat>": vectors(2, 1024)}, None, r"1024 \(as for Stable Diffusion 2"),
    "sdxl": (both(vectors(1, WIDTH)), None, "Stable Diffusion XL"),
    "no token": (vectors(WIDTH), None, "pass the name in this case: `token"),
    "several keys": ({"a": vectors(WIDTH), "b": vectors(WIDTH)}, None, "`string_to_param`"),
    "no key": ({}, None, "holds nothing"),
    "in vocabulary": ({"cat</w>": vectors(WIDTH)}, None, "already in tokenizer vocabulary"),
    "duplicates": ([vectors(WIDTH), vectors(WIDTH)], ["<a>", "<a>"], "contains duplicates"),
    "same name twice": ([{"<a>": vectors(WIDTH)}] * 2, None, "already in tokenizer"),
    "lengths": ([{"<a>": vectors(WIDTH)}] * 2, ["<a>"], "list of models of length 2"),
    "rows": (vectors(3, WIDTH), ["<a>", "<b>"], "one row for each token"),
    "axes": ({"<a>": vectors(1, 1, WIDTH)}, None, "shape"),
    "integers": ({"<a>": torch.ones(WIDTH, dtype=torch.long)}, None, "floating-point"),
    "nan": ({"<a>": torch.full((WIDTH,), torch.nan)}, None, "NaN"),
    "empty token": (vectors(WIDTH), " ", "text with something in it"),
    "no tensor": ({"<a>": "b"}, None, "no tensor"),
    "number": (3, "<a>", "path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(untouched: StableDiffusionPipeline, case: str) -> None:
    pipe, (source, token, message) = untouched, REFUSED[case]
    before = state(pipe)
    with pytest.raises(InputError, match=message):
        pipe.load_textual_inversion(source, token)
    assert_same(state(pipe), before)


def test_a_later_item_that_is_wrong_undoes_the_list(
    tmp_path: Path, pipe: StableDiffusionPipeline
) -> None:
    pipe.load_textual_inversion({"<old>": vectors(2, WIDTH)})
    before = state(pipe)
    for wrong in ({"<new>": vectors(7)}, {"<old>": vectors(WIDTH)}, tmp_path / "missing.pt"):
        with pytest.raises(ValueError):
            pipe.load_textual_inversion([{"<first>": vectors(2, WIDTH)}, wrong])
        assert_same(state(pipe), before)
    with pytest.raises(InputError, match=r"Multi-vector Token \['<x>_1'\]"):
        pipe.load_textual_inversion([{"<x>_1": vectors(WIDTH)}, {"<x>": vectors(2, WIDTH)}])
    assert_same(state(pipe), before)


def test_a_tokenizer_that_fails_halfway_is_restored(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.load_textual_inversion({"<old>": vectors(2, WIDTH)})
    before = state(pipe)
    with monkeypatch.context() as patched:
        patched.setattr(pipe.tokenizer, "convert_tokens_to_ids", lambda tokens: [0] * len(tokens))
        with pytest.raises(TokenizerError, match="did not take the new tokens"):
            pipe.load_textual_inversion({"<new>": vectors(3, WIDTH)})
    assert_same(state(pipe), before)


def test_random_orders_of_loading_and_unloading_end_where_they_began(
    pipe: StableDiffusionPipeline,
) -> None:
    rng, before = random.Random(0), state(pipe)
    there: dict[str, torch.Tensor] = {}
    for step in range(7):
        if there and rng.random() < 0.4:
            token = rng.choice(list(there))
            pipe.unload_textual_inversion(token)
            del there[token]
        else:
            token = f"<word {step}>"
            there[token] = vectors(rng.randint(1, 4), WIDTH) * (step + 1)
            pipe.load_textual_inversion({token: there[token]})
        for token, value in there.items():
            assert torch.equal(row(pipe, token), value[0])
        assert len(pipe.tokenizer) == 49408 + sum(map(len, there.values()))
    pipe.unload_textual_inversion()
    pipe.unload_textual_inversion()
    assert_same(state(pipe), before)
    assert pipe.tokenizer.get_vocab() == CLIPTokenizer().get_vocab()


def test_tokens_that_were_never_added_cannot_be_unloaded(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(InputError, match="No tokens to remove found"):
        pipe.unload_textual_inversion("<cat>")
    pipe.load_textual_inversion({"<cat>": vectors(WIDTH)})
    with pytest.raises(InputError, match=r"<dog>.*added are: <cat>"):
        pipe.unload_textual_inversion(["<cat>", "<dog>"])
    row(pipe, "<cat>")


def test_rows_beyond_the_tokenizer_come_back() -> None:
    tokenizer, encoder = CLIPTokenizer(), tiny_text_encoder(vocab_size=49415)
    pipe = tiny_pipeline(tokenizer=tokenizer, text_encoder=encoder)
    before = state(pipe)
    pipe.load_textual_inversion({"<a>": vectors(2, WIDTH)})
    pipe.load_textual_inversion({"<b>": vectors(1, WIDTH)})
    assert torch.equal(row(pipe, "<b>"), vectors(1, WIDTH)[0])
    pipe.unload_textual_inversion("<a>")
    pipe.unload_textual_inversion("<b>")
    assert_same(state(pipe), before)


def test_a_pair_that_does_not_belong_together_is_refused() -> None:
    pipe = tiny_pipeline(tokenizer=CLIPTokenizer(), text_encoder=tiny_text_encoder(vocab_size=1000))
    with pytest.raises(TokenizerError, match="49408 tokens, but the text encoder only 1000"):
        pipe.load_textual_inversion({"<a>": vectors(WIDTH)})
    for name in ("tokenizer", "text_encoder"):
        missing: dict[str, Any] = {name: None}
        bare = tiny_pipeline(**missing)
        with pytest.raises(InputError, match=f"requires `self.{name}`"):
            bare.load_textual_inversion({"<a>": vectors(WIDTH)})


def test_embeddings_take_the_precision_of_the_encoder(pipe: StableDiffusionPipeline) -> None:
    pipe.text_encoder.to(torch.float16)
    pipe.load_textual_inversion({"<a>": vectors(WIDTH)})
    assert row(pipe, "<a>").dtype == torch.float16
    with pytest.raises(InputError, match=r"too large for torch\.float16"):
        pipe.load_textual_inversion({"<b>": torch.full((WIDTH,), 1e9)})


def test_a_picture_without_an_embedding_is_refused(
    tmp_path: Path, pipe: StableDiffusionPipeline
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="picture without an embedding"):
        pipe.load_textual_inversion(tmp_path / "plain.png")


def test_an_added_word_changes_the_picture_and_its_removal_restores_it(
    pipe: StableDiffusionPipeline,
) -> None:
    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        options = {"output_type": "latent", "return_dict": False, "generator": generator}
        return pipe("a <cat>", num_inference_steps=1, **options)[0]

    plain = draw()
    pipe.load_textual_inversion({"<cat>": vectors(3, WIDTH)})
    assert not torch.equal(draw(), plain)
    pipe.unload_textual_inversion("<cat>")
    assert torch.equal(draw(), plain)


def test_words_are_saved_and_loaded_with_the_pipeline(
    tmp_path: Path, pipe: StableDiffusionPipeline
) -> None:
    pipe.load_textual_inversion({"<cat>": vectors(2, WIDTH)})
    pipe.save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    embeds = [p.encode_prompt("a <cat>", "cpu", 1, False)[0] for p in (pipe, loaded)]
    assert torch.equal(*embeds)
    loaded.unload_textual_inversion("<cat>")
    assert len(loaded.tokenizer) == len(loaded.text_encoder.get_input_embeddings().weight) == 49408


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_end_in_an_error_of_ours(tmp_path: Path, name: str) -> None:
    rng, path = random.Random(name), tmp_path / name
    FORMATS[name](path, vectors(2, 8))
    whole = path.read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(bytes(damaged)[: rng.choice([len(whole), rng.randrange(len(whole))])])
        try:
            assert read_embedding(path).vectors.ndim == 2
        except SfumatoError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    "content",
    [
        '{"string_to_param": []}',
        '{"string_to_param": {"*": 1}}',
        '{"string_to_param": {"*": {"TORCHTENSOR": [[1], [1, 2]]}}}',
        "[]",
        "{",
    ],
)
def test_pictures_with_a_damaged_embedding_are_refused(tmp_path: Path, content: str) -> None:
    info = PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(content.encode()).decode())
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(SfumatoError):
        read_embedding(tmp_path / "a.png")
