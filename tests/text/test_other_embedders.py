"""compel and sd_embed: what they ask of a tokenizer and a text encoder, and what they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato import StableDiffusionPipeline
from sfumato.errors import InputError
from tests.pipelines.tiny import tiny_pipeline

LONG = "a red apple on a wooden table in the morning, " * 12
PROMPTS = [
    "",
    "a red++ apple",
    "a (red)1.3 apple-- on a table",
    '("a cat", "a dog").blend(0.3, 0.7)',
    '("a cat", "a dog").and()',
    'a "blue".swap("red") ball',
    "(a (((deeply) nested)+)- thing)0.8",
]


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, positive: Any, negative: Any, **options: Any) -> Tensor:
    call = {"num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16}
    generator = torch.Generator().manual_seed(0)
    result: Any = pipe(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        generator=generator,
        **call,
        **options,
    )
    assert result.images.isfinite().all()
    return result.images


class Oracle:
    """transformers' tokenizer and text encoder with the weights of a pipeline's."""

    def __init__(self, pipe: Any, folder: Path) -> None:
        transformers = pytest.importorskip("transformers")
        pipe.tokenizer.save_pretrained(folder / "tokenizer")
        pipe.text_encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
        if not hasattr(self.text_encoder, "text_model"):
            # transformers 5 has no such level, which compel and sd_embed ask for all the same
            object.__setattr__(self.text_encoder, "text_model", self.text_encoder)


@pytest.fixture(scope="module")
def oracle(pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(pipe, tmp_path_factory.mktemp("oracle"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LAST_HIDDEN_STATES_NORMALIZED",
                                  "PENULTIMATE_HIDDEN_STATES_NORMALIZED",
                                  "PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED"])  # fmt: skip
def test_compel_embeds_as_with_the_objects_of_transformers(
    pipe: Any, oracle: Oracle, kind: str
) -> None:
    compel = pytest.importorskip("compel")
    options = {
        "returned_embeddings_type": compel.ReturnedEmbeddingsType[kind],
        "truncate_long_prompts": False,
    }
    ours = compel.Compel(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, **options)
    theirs = compel.Compel(tokenizer=oracle.tokenizer, text_encoder=oracle.text_encoder, **options)
    for prompt in [*PROMPTS, LONG]:
        torch.testing.assert_close(ours(prompt), theirs(prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_pictures_are_drawn_from_what_compel_embeds(pipe: Any) -> None:
    compel = pytest.importorskip("compel")
    embed = compel.Compel(
        tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, truncate_long_prompts=False
    )
    plain = drawn(pipe, embed("a cat"), embed(""))
    named: Any = pipe(
        "a cat", num_inference_steps=2, output_type="latent", height=16, width=16,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    torch.testing.assert_close(plain, named.images, atol=1e-4, rtol=1e-4)
    long, short = embed(LONG), embed("blurry")
    assert long.shape[1] > short.shape[1] == 77
    with pytest.raises(InputError, match="same shape"):
        drawn(pipe, long, short)
    drawn(pipe, *embed.pad_conditioning_tensors_to_same_length([long, short]))
    batch = embed(["a cat", "a dog++"])
    assert drawn(pipe, batch, embed(["", "blurry"])).shape[0] == 2


def sd_embed(pipe: Any, text: str, weights: dict[str, float], *, clip_skip: int = 0) -> Tensor:
    """What sd_embed asks of the pipeline for long weighted prompts of SD 1.5.

    Words are turned into ids one by one without limit, ids are cut into windows of 75, each window
    is embedded by itself, and weights pull the tokens from the window's last one.
    """
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    ids: list[int] = []
    strengths: list[float] = []
    for word in text.split():
        found = tokenizer(word, truncation=False).input_ids[1:-1]
        ids += found
        strengths += [weights.get(word, 1.0)] * len(found)
    windows = []
    while ids or not windows:
        taken, ids = ids[:75], ids[75:]
        strong, strengths = strengths[:75], strengths[75:]
        filled = [bos, *taken, *[eos] * (76 - len(taken))]
        tensor = torch.tensor([filled], dtype=torch.long, device=encoder.device)
        if clip_skip:
            states = encoder(tensor, output_hidden_states=True)
            hidden = states.hidden_states[-(clip_skip + 1)]
            embedding = encoder.text_model.final_layer_norm(hidden)[0]
        else:
            embedding = encoder(tensor)[0].squeeze(0)
        for place, strength in enumerate([1.0, *strong]):
            if strength != 1:
                embedding[place] = embedding[-1] + (embedding[place] - embedding[-1]) * strength
        windows.append(embedding[None])
    return torch.cat(windows, dim=1).to(encoder.dtype)


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_the_calls_of_sd_embed_give_what_transformers_gives(
    pipe: Any, oracle: Oracle, clip_skip: int
) -> None:
    with torch.no_grad():
        ours = sd_embed(pipe, LONG, {"red": 1.4}, clip_skip=clip_skip)
        theirs = sd_embed(oracle, LONG, {"red": 1.4}, clip_skip=clip_skip)
    assert ours.shape[1] > 77
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    drawn(pipe, ours, torch.zeros_like(ours))


def test_tokenizers_answer_what_such_libraries_ask(pipe: Any, oracle: Oracle) -> None:
    ours, theirs = pipe.tokenizer, oracle.tokenizer
    for name in ("model_max_length", "bos_token_id", "eos_token_id", "pad_token_id",
                 "bos_token", "eos_token", "pad_token", "unk_token_id", "vocab_size"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    for text in ("a cat", "", "an unusualword, indeed"):
        assert ours.tokenize(text) == theirs.tokenize(text)
        pieces = theirs.tokenize(text)
        assert ours.convert_tokens_to_ids(pieces) == theirs.convert_tokens_to_ids(pieces)
        plain = {"truncation": False, "add_special_tokens": False, "return_tensors": None}
        assert ours(text, **plain).input_ids == theirs(text, **plain).input_ids
        padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        assert torch.equal(ours(text, **padded).input_ids, theirs(text, **padded).input_ids)
    ids = theirs("a cat").input_ids
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embeddings_in_half_precision_are_taken(pipe: Any, dtype: torch.dtype) -> None:
    with torch.no_grad():
        positive, negative = (sd_embed(pipe, text, {}) for text in ("a cat", "a dog"))
    wanted = drawn(pipe, positive, negative)
    got = drawn(pipe, positive.to(dtype), negative.to(dtype))
    torch.testing.assert_close(got.float(), wanted, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("length", [1, 60, 154, 1000])
def test_embeddings_of_any_length_are_taken(pipe: Any, length: int) -> None:
    width = pipe.text_encoder.config.hidden_size
    positive, negative = torch.randn(2, 1, length, width, generator=torch.Generator())
    assert not torch.equal(drawn(pipe, positive, negative), drawn(pipe, positive, -negative))


def test_pooled_outputs_are_not_wanted(pipe: Any) -> None:
    width = pipe.text_encoder.config.hidden_size
    embeds = torch.zeros(1, 77, width)
    with pytest.raises(TypeError, match="pooled_prompt_embeds"):
        drawn(pipe, embeds, embeds, pooled_prompt_embeds=torch.zeros(1, width))
