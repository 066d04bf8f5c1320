"""Samplers of CFG++ in calls: pipelines and the command hand them the negative answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato import CFGPlusPlus, IntervalGuidance, KDiffusionScheduler
from sfumato.errors import InputError
from tests.pipelines.tiny import tiny_pipeline


def drawn(sampler: str, **options: Any) -> torch.Tensor:
    pipe = tiny_pipeline()
    pipe.scheduler = KDiffusionScheduler.from_config(pipe.scheduler.config, sampler=sampler)
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"num_inference_steps": 5, "output_type": "latent", **options}
    generator = torch.Generator().manual_seed(2)
    result: Any = pipe("a cat", negative_prompt="a dog", generator=generator, **call)
    return result.images


def test_euler_with_cfg_plus_plus_is_euler_with_that_part_of_a_guidance() -> None:
    part = drawn("euler", guidance_scale=2.0, guidance=CFGPlusPlus(0.7))
    torch.testing.assert_close(
        drawn("euler_cfg_pp", guidance_scale=0.7), part, atol=1e-4, rtol=1e-4
    )


def test_a_scale_of_zero_asks_about_the_prompt_alone() -> None:
    plain = drawn("dpmpp_2m", guidance_scale=0.0)
    torch.testing.assert_close(drawn("dpmpp_2m_cfg_pp", guidance_scale=0.0), plain)


def test_outside_of_an_interval_it_is_the_sampler_without_it() -> None:
    nowhere = IntervalGuidance(0.0, 0.0)
    plain = drawn("dpmpp_2m", guidance_scale=1.0)
    got = drawn("dpmpp_2m_cfg_pp", guidance_scale=1.5, guidance=nowhere)
    torch.testing.assert_close(got, plain, atol=1e-4, rtol=1e-4)


def test_a_prompt_of_several_parts_and_rescaling_go_with_it() -> None:
    wanted = {"guidance_scale": 1.2, "prompt_syntax": "a1111"}
    one = drawn("res_multistep_cfg_pp", **wanted)
    assert np.isfinite(one.numpy()).all()
    rescaled = drawn("res_multistep_cfg_pp", guidance_rescale=0.7, **wanted)
    assert not torch.equal(one, rescaled)


def test_the_part_is_refused_beside_the_sampler() -> None:
    with pytest.raises(InputError, match="has CFG\\+\\+ in it"):
        drawn("euler_cfg_pp", guidance_scale=2.0, guidance=CFGPlusPlus(0.7))
