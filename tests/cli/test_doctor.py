"""The doctor: finds what is missing, says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfumato.cli import doctor
from tests.command import Run


def findings(text: str) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in json.loads(text)}


def test_a_sound_installation_is_all_well(run: Run, embedded: Path) -> None:
    said = run("doctor", "--json")
    rows = findings(said.out)
    assert said.code == 0
    assert rows["embedded model"]["state"] == "ok"
    assert rows["torch"]["detail"].startswith("2.")
    assert all(bool(row["remedy"]) == (row["state"] != "ok") for row in rows.values())


def test_a_damaged_model_is_found_with_hash_and_remedy(run: Run, embedded: Path) -> None:
    (embedded / "unet/config.json").write_bytes(b"{}")
    said = run("doctor")
    assert said.code == 1
    assert "unet/config.json" in said.out and "expected is" in said.out and "Reinstall" in said.out


def test_a_missing_model_and_manifest_are_found(run: Run, embedded: Path) -> None:
    (embedded / "SHA256SUMS").unlink()
    assert findings(run("doctor", "--json").out)["embedded model"]["state"] == "fail"
    (embedded / "model_index.json").unlink()
    assert "no embedded model" in run("doctor").out


def test_a_missing_extra_comes_with_the_way_to_install_it(
    run: Run, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [(extra, f"no-{package}", purpose) for extra, package, purpose in doctor.EXTRAS]
    monkeypatch.setattr(doctor, "EXTRAS", missing)
    said = run("doctor")
    assert said.code == 0
    for extra in ("hub", "yaml"):
        assert f"pip install 'sfumato[{extra}]'" in said.out


def test_an_old_torch_fails(run: Run, embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.__version__", "2.9.1+cpu")
    said = run("doctor")
    assert said.code == 1
    assert "torch>=2.10" in said.out


def test_every_extra_of_the_doctor_is_one_of_the_project() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for extra, _, _ in doctor.EXTRAS:
        assert f"\n{extra} = [" in text
