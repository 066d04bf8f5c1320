"""Hostile prompts: no crash, no recursion, no more than linear work.

A slice of what ``python -m tests.fuzz.prompts`` runs, which takes the time as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.text.prompt.schedule import parse_script
from tests.fuzz.prompts import HOSTILE, goes_round, random_prompts, read_in_all_ways


def lines_run(call: Callable[[], object]) -> int:
    """How many lines of Python are run, each turn of a loop and of a comprehension anew."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def growth(read: Callable[[str], object], make: Callable[[int], str], length: int) -> float:
    """How many times the work for a quarter of a text the whole takes."""
    read(make(length))  # what is done once
    return lines_run(lambda: read(make(length))) / lines_run(lambda: read(make(length // 4)))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_prompt_is_read_and_comes_back_from_a_picture(name: str, tmp_path: Path) -> None:
    text = HOSTILE[name](60_000)
    read_in_all_ways(text)
    goes_round(text, tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_prompt_takes_work_in_proportion(name: str) -> None:
    assert growth(read_in_all_ways, HOSTILE[name], 8_000) < 5


def test_more_work_than_in_proportion_would_be_seen() -> None:
    def again_and_again(text: str) -> None:
        for place, _ in enumerate(text):
            _ = [letter for letter in text[:place] if letter == ")"]

    assert growth(again_and_again, HOSTILE["crossing"], 800) > 10


def test_random_prompts_are_read_and_come_back_from_pictures(tmp_path: Path) -> None:
    for text in random_prompts(0, 1_000_000):
        read_in_all_ways(text)
        goes_round(text, tmp_path)


@given(st.text(st.sampled_from("()[]:|\\ ab1.,BREAKND<>lora\n"), max_size=60))
def test_no_short_prompt_fails(text: str) -> None:
    read_in_all_ways(text.replace("lora:", "lora"))


def test_a_deep_script_can_be_thrown_away() -> None:
    script = parse_script(HOSTILE["nested switches"](200_000))
    assert script.at(4, 20) == "b" and script.at(1, 20) == "a"
    assert script.timetable(20) == [(3, "a"), (20, "b")]
