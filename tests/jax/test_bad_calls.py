"""What the torch pipeline refuses, the JAX pipeline refuses in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.errors import InputError, NumericalError, SfumatoError
from tests.jax.small import small_pipeline

jax = pytest.importorskip("jax")

from sfumato.jax.devices import replicate  # noqa: E402
from sfumato.jax.models import FlaxUNet2DConditionModel  # noqa: E402
from sfumato.jax.pipeline import FlaxStableDiffusionPipeline  # noqa: E402

KEY = jax.random.PRNGKey(0)
NOISE = np.zeros((1, 4, 8, 8), np.float32)
#: Refused with the same message.
ALIKE: list[dict[str, Any]] = [
    *({"height": value} for value in (0, -8, 12, 16.5, "16", True, 10**9)),
    *({"width": value} for value in (7, float("nan"), [16])),
    *({"num_inference_steps": value} for value in (0, -1, 2.5, "2", None, 1001, True, [2])),
    *({"guidance_scale": value} for value in (float("nan"), float("inf"), "7", None, True)),
    *({"guidance_scale": value} for value in (np.float32("nan"), {}, b"1", 1j, 10**400)),
    *({"eta": value} for value in (-0.1, 1.5, float("nan"), "0", None, True)),
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
    *({"latents": value} for value in ("noise", 5, [[1.0]], NOISE.astype(bool))),
    *({"guidance_scale": value} for value in ([1.0, 2.0], [], [None], ["x"], [[1], [2, 3]])),
    *({"guidance_scale": np.array(value)} for value in (["7"], [1j], [True], [float("inf")])),
    {"prompt": ["a", "b"], "negative_prompt": ["c"]},
    {"negative_prompt": 7},
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("loaded")
    small_pipeline().save_pretrained(folder)
    return FlaxStableDiffusionPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("model")
    pipe = small_pipeline()
    pipe.save_pretrained(folder)
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(folder)

    def draw_in_torch(prompt: Any = "a cat", latents: Any = None, **options: Any) -> None:
        noise = torch.from_numpy(latents) if isinstance(latents, np.ndarray) else latents
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


def test_numbers_that_break_are_an_error_that_names_the_step(both: tuple[Any, Any]) -> None:
    large = np.full_like(NOISE, 1e38)
    said = []
    for draw in both:
        with pytest.raises(NumericalError, match="NaN or infinity in step 1 of 3") as caught:
            draw(latents=large)
        said.append(str(caught.value))
    assert said[0] == said[1]
    with pytest.raises(NumericalError, match="NaN or infinity in step 1 of 3"):
        both[1](latents=large, jit=True)


def test_a_decoder_that_overflows_is_named(tmp_path: Path) -> None:
    small_pipeline().save_pretrained(tmp_path)
    pipeline, params = FlaxStableDiffusionPipeline.from_pretrained(tmp_path)
    name = "decoder.conv_out.bias"
    broken = {**params["vae"], name: params["vae"][name].at[0].set(np.inf)}
    for jit in (False, True):
        with pytest.raises(NumericalError, match=r"the autoencoder \(`vae`\) overflowed"):
            pipeline(pipeline.prepare_inputs("a"), {**params, "vae": broken}, KEY, 1, jit=jit)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({"prng_seed": value}, "`prng_seed` has to be a key") for value in (
            None, "a", 0, [0, 1], torch.Generator(), np.zeros(3, np.uint32),
            np.zeros((2, 3), np.uint32), np.zeros((1, 1, 2), np.uint32), np.zeros(2, np.int32),
        )),
        ({"prng_seed": np.zeros((2, 2), np.uint32)}, "`prng_seed` has 2 keys"),
        *(({"prompt_ids": value}, "`prompt_ids` has to be integers") for value in (
            None, "a", [[1, 2], [3]], [[1.0]], [[True]], 5,
        )),
        ({"prompt_ids": np.zeros((1, 99), int)}, "positions for at most 77"),
        ({"params": {"unet": None}}, r"`params\['unet'\]` has to be a dictionary"),
        ({"params": {"unet": {}}}, "The weights lack 'time_embedding"),
        ({"params": "replicated"}, "has an axis of devices, but `prompt_ids` has none"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)  # fmt: skip
def test_what_only_jax_is_given_is_checked_too(
    loaded: tuple[Any, Any], changes: dict[str, Any], said: str
) -> None:
    pipeline, params = loaded
    given = changes.get("params", {})
    replaced = replicate(params, 1) if given == "replicated" else {**params, **given}
    good = {
        "prompt_ids": pipeline.prepare_inputs(["a"]),
        "params": replaced,
        "prng_seed": KEY,
        "num_inference_steps": 1,
    }
    with pytest.raises(SfumatoError, match=said):
        pipeline(**{**good, **{name: v for name, v in changes.items() if name != "params"}})


def test_parts_that_are_missing_are_named(loaded: tuple[Any, Any]) -> None:
    pipeline, params = loaded
    ids = pipeline.prepare_inputs("a")
    parts = {name: part for name, part in pipeline.components.items() if name != "unet"}
    without = FlaxStableDiffusionPipeline(**parts, unet=None)  # pyright: ignore
    with pytest.raises(InputError, match="must have `unet` for drawing"):
        without(ids, params, KEY, 1)
    judged = FlaxStableDiffusionPipeline(**{**pipeline.components, "safety_checker": object()})
    with pytest.raises(InputError, match="`params` lacks safety_checker"):
        judged(ids, params, KEY, 1)
    with pytest.raises(InputError, match="has an axis of devices, which no file has"):
        pipeline.save_pretrained("nowhere", replicate(params, 1))


def test_models_that_take_more_than_latents_are_refused(loaded: tuple[Any, Any]) -> None:
    pipeline, params = loaded
    wide = FlaxUNet2DConditionModel(pipeline.unet.config.replace(in_channels=9))
    other = FlaxStableDiffusionPipeline(**{**pipeline.components, "unet": wide})
    with pytest.raises(InputError, match="9 input channels, but the vae makes latents of 4"):
        other(pipeline.prepare_inputs("a"), params, KEY, 1)


@pytest.mark.parametrize("dtype", ["bf16", 5, "int8", object()])
def test_a_type_that_is_none_to_compute_in_is_refused(dtype: Any) -> None:
    with pytest.raises(InputError, match="`dtype` has to be one of"):
        FlaxUNet2DConditionModel(dtype=dtype)


def test_both_refuse_an_argument_that_there_is_not(both: tuple[Any, Any]) -> None:
    for draw in both:
        with pytest.raises(TypeError, match="unexpected keyword argument 'stepps'"):
            draw(stepps=3)
