"""What the torch pipeline refuses, the JAX pipeline refuses in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import StableDiffusionPipeline
from sfumato.errors import InputError
from tests.pipelines.tiny import tiny_pipeline

jax = pytest.importorskip("jax")

from sfumato.jax.pipeline import FlaxStableDiffusionPipeline  # noqa: E402

NOISE = np.zeros((1, 4, 8, 8), np.float32)
#: Refused with the same message.
ALIKE: list[dict[str, Any]] = [
    *({"height": value} for value in (0, -8, 12, 16.5, "16", True, 10**9)),
    *({"width": value} for value in (7, float("nan"), [16])),
    *({"num_inference_steps": value} for value in (0, -1, 2.5, "2", None, 1001, True, [2])),
    *({"guidance_scale": value} for value in (float("nan"), float("inf"), "7", None, True)),
    *({"clip_skip": value} for value in (-1, 99, "1", 1.5)),
    *({"prompt": value} for value in (5, None, [], ["a", 3], b"a", ("a",), [["a"]])),
    {"latents": np.full_like(NOISE, np.nan)},
]
#: Refused by both, in the words of each one's arguments.
IN_OWN_WORDS: list[dict[str, Any]] = [
    {"latents": NOISE[:, :3]},
    {"latents": NOISE[0]},
    {"latents": np.concatenate([NOISE, NOISE])},
    {"latents": NOISE.astype(np.int64)},
    {"guidance_scale": [1.0, 2.0]},
    {"prompt": ["a", "b"], "negative_prompt": ["c"]},
    {"negative_prompt": 7},
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)

    def draw_in_torch(prompt: Any = "a cat", latents: Any = None, **options: Any) -> None:
        noise = None if latents is None else torch.from_numpy(latents)
        pipe(prompt, latents=noise, **{"num_inference_steps": 2, **options})

    def draw_in_jax(prompt: Any = "a cat", negative_prompt: Any = None, **options: Any) -> None:
        if negative_prompt is not None:
            options["neg_prompt_ids"] = pipeline.prepare_inputs(negative_prompt)
        ids = pipeline.prepare_inputs(prompt)
        pipeline(ids, params, jax.random.PRNGKey(0), **{"num_inference_steps": 2, **options})

    return draw_in_torch, draw_in_jax


def refused(draw: Any, call: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        draw(**call)
    return str(caught.value)


@pytest.mark.parametrize("call", ALIKE, ids=str)
def test_both_say_the_same_of_a_bad_call(both: tuple[Any, Any], call: dict[str, Any]) -> None:
    assert refused(both[0], call) == refused(both[1], call)


@pytest.mark.parametrize("call", IN_OWN_WORDS, ids=range(len(IN_OWN_WORDS)))
def test_both_refuse_a_bad_call(both: tuple[Any, Any], call: dict[str, Any]) -> None:
    name = next(iter(call)).removeprefix("negative_")
    for draw in both:
        assert name in refused(draw, call)


def test_both_refuse_an_argument_that_there_is_not(both: tuple[Any, Any]) -> None:
    for draw in both:
        with pytest.raises(TypeError, match="unexpected keyword argument 'stepps'"):
            draw(stepps=3)
