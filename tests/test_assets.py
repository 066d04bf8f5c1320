"""The embedded model's place, and the manifest that tells a damaged file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sfumato import assets
from sfumato.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet" / "weights.safetensors").write_bytes(bytes(1000))
    assets.write_manifest(tmp_path)
    return tmp_path


def test_a_manifest_lists_every_file_in_the_format_of_sha256sum(folder: Path) -> None:
    assert sorted(assets.verify_manifest(folder)) == [
        "model_index.json",
        "unet/weights.safetensors",
    ]
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)


def test_a_changed_byte_is_found_and_named(folder: Path) -> None:
    expected = assets.read_manifest(folder)["unet/weights.safetensors"]
    (folder / "unet" / "weights.safetensors").write_bytes(bytes(999) + b"\1")
    with pytest.raises(CheckpointError, match=rf"weights\.safetensors.*damaged.*{expected}"):
        assets.verify_manifest(folder)


def test_a_missing_file_is_found_and_named(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"model_index\.json' is missing"):
        assets.verify_manifest(folder)


@pytest.mark.parametrize("line", ["junk", "0" * 64 + "  ../x", "0" * 64 + "  /etc/passwd"])
def test_a_manifest_that_points_outside_is_refused(folder: Path, line: str) -> None:
    (folder / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(CheckpointError, match="is damaged"):
        assets.verify_manifest(folder)


def test_an_installation_without_model_says_so(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(assets, "_FOLDER", folder)
    with pytest.raises(CheckpointError, match=r"no embedded model.*Reinstall"):
        assets.embedded_model_path()
    folder.joinpath("model").mkdir()
    (folder / "model" / "model_index.json").write_text("{}")
    assert assets.embedded_model_path() == folder / "model"
