"""Presets of quality."""

from __future__ import annotations

from typing import Any

import pytest

from sfumato.errors import InputError
from sfumato.pipelines.quality import QUALITIES, find_quality, use_quality
from sfumato.pipelines.sampler_names import names_of
from tests.command import Run
from tests.pipelines.tiny import tiny_pipeline


@pytest.mark.parametrize("name", QUALITIES)
def test_a_preset_sets_sampler_schedule_and_steps(name: str) -> None:
    pipe: Any = tiny_pipeline()
    arguments = use_quality(pipe, name)
    quality = find_quality(name)
    calls: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    pipe("a cat", output_type="latent", **arguments)
    assert len(calls) == quality.steps
    sampler, _ = names_of(type(pipe.scheduler).__name__, pipe.scheduler.config)
    assert sampler == quality.sampler


def test_better_presets_take_more_steps() -> None:
    steps = [quality.steps for quality in QUALITIES.values()]
    assert list(QUALITIES) == ["fast", "balanced", "best"] and steps == sorted(steps)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"one of fast, balanced, best\..*Did you mean 'best'"):
        find_quality("bes")


def test_the_command_takes_a_preset_and_single_options_before_it(run: Run) -> None:
    said = run("a cat", "--quality", "fast", "--steps", "2", "--seed", "1", "--json")
    assert said.code == 0
    assert '"steps": 2' in said.out and '"sampler": "DEIS"' in said.out
    assert run("a cat", "--quality", "superb").code == 2
