"""The environment variable that chooses among the compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sfumato.errors import InputError
from sfumato.native import library as native
from sfumato.native.library import AVX2, AVX512, BF16, SWITCH, VNNI, features
from tests.command import Run

#: Instruction sets in the order of the switch's values.
SETS = {"avx2": AVX2, "avx512": AVX512, "avx512_vnni": VNNI, "avx512_bf16": BF16}


class Processor:
    """A library on a processor with some instruction sets."""

    def __init__(self, has: int) -> None:
        self.has = self.used = has

    def sfumato_features(self) -> int:
        return self.has

    def sfumato_use(self, instructions: int) -> None:
        self.used = instructions


def said_with(value: str, code: str = "print(l.features(), l.describe())") -> str:
    """What a process says whose switch has this value."""
    done = subprocess.run(
        [sys.executable, "-c", f"from sfumato.native import library as l; {code}"],
        env={**os.environ, SWITCH: value},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.mark.parametrize("name", SETS)
def test_the_switch_holds_a_process_to_the_kernels_that_it_names(name: str) -> None:
    if not features() & SETS[name]:
        pytest.skip(f"no {name} here")
    names = list(SETS)
    allowed = sum(SETS[n] for n in names[: names.index(name) + 1]) & features()
    found, words = said_with(name).split(" ", 1)
    assert int(found) == allowed
    assert words.startswith("in use (") and words.endswith(f"{name}; {SWITCH}={name})")


@pytest.mark.parametrize("value", ["0", "none", " None "])
def test_the_switch_leaves_everything_to_torch(value: str) -> None:
    word = value.strip().lower()
    assert said_with(value) == f"0 switched off by {SWITCH}={word}"
    assert said_with(value, "print(l.library(), l.can_compute('float32'))") == "None False"


def test_nothing_asked_for_means_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "auto", "1", "AUTO"):
        monkeypatch.setenv(SWITCH, value)
        assert native._asked() == "" and not native.switched_off()


def test_other_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "sse\x1b[2J")
    with pytest.raises(InputError, match=r"is 'sse\\x1b\[2j'; it has to be one of auto, avx2, "):
        native.library.__wrapped__()


@pytest.mark.parametrize("name", SETS)
def test_kernels_that_the_processor_cannot_run_are_refused(name: str) -> None:
    bit = SETS[name]
    lacking = Processor(sum(other for other in SETS.values() if other != bit))
    with pytest.raises(InputError, match=f"asks for the kernels for {name}, but this processor"):
        native._hold_to(lacking, name)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="but no kernels were built"):
        native._hold_to(None, name)


def test_better_kernels_than_named_are_not_used() -> None:
    best = Processor(AVX2 | AVX512 | VNNI | BF16)
    used = []
    for name in SETS:
        native._hold_to(best, name)  # type: ignore[arg-type]
        used.append(best.used)
    assert used == [AVX2, AVX2 | AVX512, AVX2 | AVX512 | VNNI, best.has]


def test_the_doctor_shows_the_choice_and_refuses_a_wrong_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"({SWITCH} chooses)" in run("doctor").out
    monkeypatch.setenv(SWITCH, "fastest")
    for cached in (native.library, native.features, native.multiplied_as):
        cached.cache_clear()
    said = run("doctor")
    assert said.code == 1
    assert f"fail  kernels         {SWITCH} is 'fastest'" in said.out
