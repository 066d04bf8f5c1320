"""Damaged and hostile weight files end in one clear error; nothing runs, hangs or half-loads."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.checkpoints import tensors as tensors_module
from sfumato.checkpoints.files import fingerprint
from sfumato.checkpoints.pickles import read_pickle
from sfumato.checkpoints.tensors import read_safetensors, save_safetensors
from sfumato.errors import CheckpointError, WeightsMismatchError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.models.unet import UNet2DConditionModel
from sfumato.text.clip import CLIPTextModel
from tests.checkpoints.tiny import UNET
from tests.faults.hostile_files import (
    call_pickle,
    entry,
    in_torch_zip,
    safetensors_bytes,
    within,
)

FIVE = struct.pack("<5f", *range(5))


def refused(path: Path, content: bytes) -> str:
    """Write the file, and return the message with which reading it is refused."""
    path.write_bytes(content)
    with within(), pytest.raises(CheckpointError) as caught:
        read_safetensors(path)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A sound file of two tensors."""
    path = tmp_path / "sound.safetensors"
    save_safetensors({"a": torch.randn(4, 3), "b": torch.randn(5)}, path)
    return path


@pytest.fixture
def unet_folder(tmp_path: Path) -> Path:
    UNet2DConditionModel(**UNET).save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


# 1-3: what is no safetensors file at all


@pytest.mark.parametrize("length", range(8))
def test_a_file_of_fewer_than_eight_bytes_is_too_small(tmp_path: Path, length: int) -> None:
    assert "header too small" in refused(tmp_path / "m.safetensors", b"\x01" * length)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001])
def test_a_header_that_claims_to_be_huge_is_refused_before_it_is_read(
    tmp_path: Path, length: int
) -> None:
    message = refused(tmp_path / "m.safetensors", struct.pack("<Q", length) + b"{}" * 50)
    assert "header too large" in message
    assert "HTML page? git-lfs pointer?" in message


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><head><title>Not Found</title></head></html>", "HTML page"),
        (b"\n\n<html lang='en'><body>503</body></html>", "HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "HTML page"),
        (b'{"error":"Repository not found"}' + b" " * 40, "error message"),
        (b"Entry not found, or something else of that kind in plain text", "error message"),
        (b"PK\x03\x04" + bytes(60), "torch pickle"),
        (b"\x80\x02}q\x00." + bytes(60), "Python pickle"),
        (b"GGUF\x03\x00\x00\x00" + bytes(60), "GGUF"),
        (b"\x1f\x8b\x08\x00" + bytes(60), "gzip"),
    ],
)
def test_a_file_of_another_kind_is_recognised_by_its_first_bytes(
    tmp_path: Path, start: bytes, words: str
) -> None:
    assert words in refused(tmp_path / "m.safetensors", start)


# 4-5: too short, too long


def test_a_truncated_file_is_reported_with_both_sizes_and_at_once(weights: Path) -> None:
    whole = weights.read_bytes()
    cuts = [1, 4, len(whole) // 2]
    for cut in cuts:
        started = time.process_time()
        message = refused(weights, whole[:-cut])
        assert time.process_time() - started < 0.1
        assert str(len(whole) - cut) in message and "cut short" in message
        if cut != cuts[-1]:  # a cut through the header leaves no word of the whole size
            assert str(len(whole)) in message


def test_a_network_is_not_built_from_a_truncated_file(unet_folder: Path) -> None:
    path = unet_folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        UNet2DConditionModel.from_pretrained(unet_folder)


def test_anything_after_the_last_tensor_is_refused(weights: Path, tmp_path: Path) -> None:
    sound = weights.read_bytes()
    assert "1 bytes after its last tensor" in refused(tmp_path / "a.safetensors", sound + b"\0")
    archive = in_torch_zip(call_pickle("os", "system", ("true",)))
    polyglot = tmp_path / "b.safetensors"
    assert "after its last tensor" in refused(polyglot, sound + archive)
    assert zipfile.is_zipfile(polyglot), "the second file is there, and would have been hidden"


# 6-8: a header that contradicts itself


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(0, 12), "b": entry(8, 20)}, "overlaps"),
        ({"a": entry(0, 12), "b": entry(0, 12), "c": entry(12, 20)}, "overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, "hole"),
        ({"a": entry(4, 20)}, "hole"),
        ({"a": entry(20, 0, [5])}, "impossible byte range"),
        ({"a": entry(0, 20, [2**40, 2**40])}, "does not take"),
        ({"a": entry(0, 20, [2**63, 2])}, "does not take"),
        ({"a": entry(0, 20, [2**64 // 4 + 5])}, "does not take"),
        ({"a": entry(0, 0, [0, 2**64]), "b": entry(0, 20)}, "does not take"),
        ({"a": entry(0, 0, [2**40, 0, 2**40]), "b": entry(0, 20)}, "does not take"),
        ({"a": entry(0, 20, [-5])}, "list of sizes"),
        ({"a": entry(0, 20, [-1, -5])}, "list of sizes"),
        ({"a": entry(0, 20, [5.0])}, "list of sizes"),
        ({"a": entry(0, 20, [True, 5])}, "list of sizes"),
        ({"a": entry(0, 20, ["5"])}, "list of sizes"),
        ({"a": entry(0, 20, [6])}, "does not take"),
        ({"a": entry(0, 20, [5], "F16")}, "does not take"),
        ({"a": entry(0, 20, [5], "F33")}, "unknown dtype"),
        ({"a": {"dtype": ["F32"], "shape": [5], "data_offsets": [0, 20]}}, "unknown dtype"),
        ({"a": {"dtype": "F32", "shape": 5, "data_offsets": [0, 20]}}, "list of sizes"),
        ({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 10, 20]}}, "data_offsets"),
        ({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0.0, 20.0]}}, "data_offsets"),
        ({"a": {"dtype": "F32", "shape": [5]}}, "data_offsets"),
        ({"a": [0, 20]}, "not described by an object"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    tmp_path: Path, header: dict[str, object], words: str
) -> None:
    assert words in refused(tmp_path / "m.safetensors", safetensors_bytes(header, FIVE))


def test_many_large_dimensions_do_not_take_long_to_multiply(tmp_path: Path) -> None:
    header = {"a": entry(0, 20, [2**62] * 200_000)}
    assert "does not take" in refused(tmp_path / "m.safetensors", safetensors_bytes(header, FIVE))


# 9: text that is not what it should be


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"\xff\xfe":1}', "utf-8"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a":' + b"9" * 5000 + b"}", "header is damaged"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":{"dtype":"F32"', "header is damaged"),
        (json.dumps({"__metadata__": {"n": 1}, "a": entry(0, 20)}), "__metadata__"),
        (json.dumps({"__metadata__": {"n": {"m": "x"}}, "a": entry(0, 20)}), "__metadata__"),
        (json.dumps({"__metadata__": ["x"], "a": entry(0, 20)}), "__metadata__"),
        (f'{{"a":{json.dumps(entry(0, 20))},"a":{json.dumps(entry(0, 20))}}}', "appears twice"),
        ('{"a":{"dtype":"F32","dtype":"F16","shape":[5],"data_offsets":[0,20]}}', "appears twice"),
        (f' {{"a":{json.dumps(entry(0, 20))}}}', "header is no JSON"),
        ('["a"]', "header is no JSON"),
    ],
)
def test_a_header_that_is_no_clean_json_is_refused(
    tmp_path: Path, header: str | bytes, words: str
) -> None:
    assert words in refused(tmp_path / "m.safetensors", safetensors_bytes(header, FIVE))


def test_spaces_that_align_the_data_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(json.dumps({"a": entry(0, 20)}) + " " * 7, FIVE))
    assert read_safetensors(path)["a"].tolist() == [0, 1, 2, 3, 4]


# 10-13: sound files with the wrong numbers in them


def test_weights_of_other_shapes_are_listed_with_a_guess_what_they_are(unet_folder: Path) -> None:
    wide = UNet2DConditionModel(**{**UNET, "cross_attention_dim": 2048})
    save_file(wide.state_dict(), unet_folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsMismatchError) as caught:
        UNet2DConditionModel.from_pretrained(unet_folder)
    message = str(caught.value)
    assert message.count(", not [") == 5 and "and 3 more" in message
    assert "attn2.to_k.weight is [8, 2048], not [8, 12]" in message
    assert "looks like an SDXL checkpoint" in message


def test_missing_weights_are_an_error_that_lists_them(unet_folder: Path) -> None:
    path = unet_folder / "diffusion_pytorch_model.safetensors"
    state = read_safetensors(path)
    del state["conv_in.bias"], state["conv_out.weight"]
    save_safetensors(state, path)
    with pytest.raises(WeightsMismatchError, match=r"2 tensors missing \(conv_in.bias; conv_out"):
        UNet2DConditionModel.from_pretrained(unet_folder)


def test_unexpected_weights_are_a_warning_and_position_ids_are_not_even_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = CLIPTextModel(
        vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = read_safetensors(path)
    state["text_model.embeddings.position_ids"] = torch.arange(77).half()[None]
    save_safetensors(state, path)
    CLIPTextModel.from_pretrained(tmp_path)
    assert caplog.text == ""
    save_safetensors({**state, "logit_scale": torch.zeros(())}, path)
    CLIPTextModel.from_pretrained(tmp_path)
    assert "1 tensors that CLIPTextModel does not have" in caplog.text
    assert "logit_scale" in caplog.text and "position_ids" not in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mmap", [False, True])
def test_nan_and_infinity_are_refused_with_the_name_of_the_tensor(
    tmp_path: Path, value: float, dtype: torch.dtype, mmap: bool
) -> None:
    path = tmp_path / "m.safetensors"
    bad = torch.zeros(100, 7, dtype=dtype)
    bad[41, 3] = value
    save_safetensors({"good": torch.zeros(3), "layer.bad": bad}, path)
    with pytest.raises(CheckpointError, match=r"'layer\.bad' holds 1 NaN or infinite"):
        read_safetensors(path, mmap=mmap)
    assert set(read_safetensors(path, check_finite=False, mmap=mmap)) == {"good", "layer.bad"}


def test_nan_in_a_network_and_in_a_pickle_is_refused(unet_folder: Path, tmp_path: Path) -> None:
    model = UNet2DConditionModel.from_pretrained(unet_folder)
    with torch.no_grad():
        model.conv_in.bias[2] = float("nan")
    for safe in (True, False):
        folder = tmp_path / str(safe)
        model.save_pretrained(folder, safe_serialization=safe)
        with pytest.raises(CheckpointError, match=r"'conv_in.bias' holds 1 NaN"):
            UNet2DConditionModel.from_pretrained(folder)
        loaded = UNet2DConditionModel.from_pretrained(folder, check_finite=False)
        assert loaded.conv_in.bias.isnan().sum() == 1


def test_numbers_that_overflow_the_dtype_asked_for_are_told_apart_from_damage(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.safetensors"
    save_safetensors({"big": torch.tensor([1e6])}, path)
    with pytest.raises(CheckpointError, match=r"too large for torch\.float16"):
        read_safetensors(path, dtype=torch.float16)


@pytest.mark.parametrize(
    "stored",
    [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_other_floating_point_weights_are_converted_to_float32(
    unet_folder: Path, stored: torch.dtype
) -> None:
    path = unet_folder / "diffusion_pytorch_model.safetensors"
    state = {k: v.to(stored) for k, v in read_safetensors(path).items()}
    save_safetensors(state, path)
    model = UNet2DConditionModel.from_pretrained(unet_folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(p, state[n].float()) for n, p in model.named_parameters())
    auto = UNet2DConditionModel.from_pretrained(unet_folder, torch_dtype="auto")
    eight_bit = stored.itemsize == 1
    assert {p.dtype for p in auto.parameters()} == {torch.float32 if eight_bit else stored}


def test_integer_weights_are_an_unsupported_dtype(unet_folder: Path) -> None:
    path = unet_folder / "diffusion_pytorch_model.safetensors"
    state = read_safetensors(path)
    state["conv_in.weight"] = state["conv_in.weight"].to(torch.int8)
    save_safetensors(state, path)
    with pytest.raises(CheckpointError, match=r"'conv_in.weight' has the unsupported dtype"):
        UNet2DConditionModel.from_pretrained(unet_folder)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_dtype_that_torch_lacks_is_unsupported(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"a": entry(0, 5, [10], "F4")}, b"12345"))
    with pytest.raises(CheckpointError, match="unsupported dtype F4"):
        read_safetensors(path, mmap=mmap)


# 24-26: paths, and files that change


def test_a_file_cut_short_while_it_is_read_is_an_error(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights.read_bytes()
    check = tensors_module.parse_header

    def check_then_cut(*args: object) -> object:
        header = check(*args)  # type: ignore[arg-type]
        os.truncate(weights, len(whole) - 4)
        return header

    monkeypatch.setattr(tensors_module, "parse_header", check_then_cut)
    with pytest.raises(CheckpointError, match=r"changed while|cut short"):
        read_safetensors(weights)


@pytest.mark.parametrize("mmap", [None, True])
def test_a_file_replaced_after_loading_leaves_the_tensors_as_they_were(
    weights: Path, mmap: bool | None
) -> None:
    loaded = read_safetensors(weights, mmap=mmap)
    before = {k: v.clone() for k, v in loaded.items()}
    save_safetensors({k: v + 1 for k, v in before.items()}, weights)
    assert all(torch.equal(loaded[k], v) for k, v in before.items())


def test_a_small_file_emptied_in_place_after_loading_does_no_harm(weights: Path) -> None:
    loaded = read_safetensors(weights)
    os.truncate(weights, 0)
    assert sum(float(t.abs().sum()) for t in loaded.values()) > 0


def test_writing_to_mapped_tensors_does_not_change_the_file(weights: Path) -> None:
    before = weights.read_bytes()
    for tensor in read_safetensors(weights, mmap=True).values():
        tensor.add_(1)
    assert weights.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are of POSIX")
def test_what_is_no_regular_file_is_refused_without_a_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    cases = {
        tmp_path: "directory",
        tmp_path / "pipe.safetensors": "pipe",
        Path("/dev/zero"): "device",
        tmp_path / "none": "no file",
        tmp_path / "none" / "none": "no file",
    }
    for path, words in cases.items():
        for read in (read_safetensors, read_pickle):
            with within(), pytest.raises(CheckpointError, match=words) as caught:
                read(path)
            assert isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 5000, "y/" * 2500, "\udcff\udcfe.safetensors", "", "\0"]
)
def test_impossible_names_are_errors_of_one_line(name: str) -> None:
    for read in (read_safetensors, read_pickle, UNet2DConditionModel.from_pretrained, fingerprint):
        with within(), pytest.raises(CheckpointError) as caught:
            read(name)
        message = str(caught.value)
        assert len(message) < 500 and "\n" not in message
        message.encode("utf-8")


def test_a_file_without_permission_is_an_error(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sfumato.checkpoints.files.os.open", refuse)  # root may read all
    with pytest.raises(CheckpointError, match="Permission denied"):
        read_safetensors(weights)


def test_a_pipe_in_a_model_folder_is_refused_without_a_hang(unet_folder: Path) -> None:
    path = unet_folder / "diffusion_pytorch_model.safetensors"
    path.unlink()
    os.mkfifo(path)
    with within(), pytest.raises(CheckpointError):
        UNet2DConditionModel.from_pretrained(unet_folder)


def test_a_fingerprint_changes_with_the_file(weights: Path) -> None:
    first = fingerprint(weights)
    assert fingerprint(weights) == first
    status = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    copy = weights.with_name("copy")
    copy.write_bytes(content)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(copy, weights)  # the same size and time, another file
    assert fingerprint(weights) != first
    second = fingerprint(weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint(weights) != second


def test_errors_of_a_vae_folder_are_errors_of_this_package_too(tmp_path: Path) -> None:
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    vae.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="header too small"):
        AutoencoderKL.from_pretrained(tmp_path)


def test_loading_leaves_the_random_generator_alone(unet_folder: Path) -> None:
    state: Tensor = torch.get_rng_state()
    UNet2DConditionModel.from_pretrained(unet_folder)
    assert torch.equal(torch.get_rng_state(), state)
