"""Files of some kilobytes that stand for more than any memory holds, or would take for ever."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfumato.checkpoints.original.original_config import read_original_config
from sfumato.checkpoints.pickle_machine import Name, Opaque, UnusualKey
from sfumato.checkpoints.pickles import read_pickled
from sfumato.errors import ConfigError
from tests.checkpoints.original.synthetic import original_yaml
from tests.faults.hostile_files import in_torch_zip, within
from tests.faults.hostile_pickles import global_name, text
from tests.faults.reading import archive, refused_or_harmless

ROOT = Path(__file__).parents[2]


def laughs(start: bytes, twice: bytes, depth: int = 40) -> bytes:
    """A list of two lists of two lists ...: spelt out, it has 2^40 entries."""
    doubled = (b"0" + twice.replace(b"?", bytes([i])) + b"q" + bytes([i + 1]) for i in range(depth))
    return start + b"q\0" + b"".join(doubled)


LISTS = laughs(b"]", b"](h?h?e")
TUPLES = laughs(b")", b"h?h?\x86")
TENSOR = (
    global_name("torch._utils._rebuild_tensor_v2") + b"((" + text("storage")
    + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\4tQK\0K\1K\4\x86K\4K\1\x86\x89"
    + global_name("collections.OrderedDict") + b")RtR"
)  # fmt: skip
EMBEDDING = b"}" + text("string_to_param") + b"}" + text("*") + TENSOR + b"ss"


@pytest.mark.parametrize(
    "body",
    [
        EMBEDDING + text("name") + LISTS + b"s",
        EMBEDDING + text("name") + TUPLES + b"s",
        EMBEDDING + text("step") + LISTS + b"s",
        b"}" + TUPLES + TENSOR + b"s",
        b"}" + TUPLES + TENSOR + b"s" + text("a") + TENSOR + b"s",
        b"}" + TUPLES + LISTS + b"s",
        b"}" + text("state_dict") + LISTS + b"s",
        b"}" + text("global_step") + LISTS + b"s" + text("a") + TENSOR + b"s",
        global_name("my_training.Callback") + TUPLES + b"R",
        global_name("my_training.Callback") + LISTS + b"\x85R" + LISTS + b"b",
    ],
    ids=["name", "tuple name", "step", "key", "keys", "both", "table", "fact", "call", "state"],
)
def test_values_that_share_their_parts_are_never_spelt_out(tmp_path: Path, body: bytes) -> None:
    members = [
        ("archive/data.pkl", b"\x80\x02" + body + b"."),
        ("archive/data/0", struct.pack("<4f", 1, 2, 3, 4)),
    ]
    with within(20):
        refused_or_harmless(tmp_path / "m.pt", archive(members))


def test_the_text_of_an_opaque_value_is_its_name() -> None:
    value: Any = ()
    for _ in range(60):
        value = (value, value)
    opaque = Opaque(Name("a", "B"), (value,), value, {"k": value}, [value])
    with within(20):
        assert repr(opaque) == "Opaque(name=Name(module='a', name='B'))"
        assert str(UnusualKey(value)) == "a key of the type tuple"
        assert len(repr(UnusualKey(value))) < 100


@pytest.mark.parametrize(
    "key", ["num_res_blocks", "transformer_depth", "context_dim", "in_channels"]
)
def test_yaml_that_refers_to_itself_is_refused(key: str) -> None:
    import yaml

    bomb = "a0: &a0 [1,1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i},*a{i}]\n" for i in range(60))
    lines = yaml.safe_dump(original_yaml()).splitlines()
    wanted = [f"{line.split(':')[0]}: *a60" if key in line else line for line in lines]
    with within(20), pytest.raises(ConfigError, match=r"references \(`\*name`\)"):
        read_original_config((bomb + "\n".join(wanted)).encode())


@pytest.mark.parametrize("value", [[1], {"a": 1}, 7, True])
def test_a_schedule_that_is_no_word_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="beta_schedule"):
        read_original_config(original_yaml(beta_schedule=value))


#: Reads files of many small objects with a gigabyte beyond what importing took.
UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from sfumato.checkpoints.header import read_header
from sfumato.checkpoints.torch_file import read_torch_file
from sfumato.errors import SfumatoError

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 10**9,) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        (read_torch_file if path.suffix == ".ckpt" else read_header)(path)
        print(f"accepted {path.name}")
    except SfumatoError as error:
        print(f"{path.name}: {error.message}")
    except BaseException as error:
        print(f"{path.name}: {error!r}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_a_large_file_of_small_objects_takes_no_gigabyte(tmp_path: Path) -> None:
    """Python needs some sixty bytes for an empty list, which a file says in one or three."""
    million = 2**20
    pickled = b"\x80\x02" + b"}" * (24 * million) + b"."
    (tmp_path / "dictionaries.ckpt").write_bytes(in_torch_zip(pickled))
    headers = {
        "lists": b'{"a":[' + b"[]," * (12 * million) + b"[]]}",
        "names": b"{" + b'"a":"",' * (12 * million) + b'"b":""}',
    }
    for name, header in headers.items():
        raw = struct.pack("<Q", len(header)) + header
        (tmp_path / f"{name}.safetensors").write_bytes(raw)
    result = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 3, result.stdout + result.stderr
    assert "the pickle is absurdly long" in lines[0]
    assert all("more entries than any model has tensors" in line for line in lines[1:])


def test_a_pickle_of_ordinary_length_is_read(tmp_path: Path) -> None:
    """A quarter of a million opcodes, as with an optimizer's state of thousands of tensors."""
    path = tmp_path / "m.ckpt"
    path.write_bytes(in_torch_zip(b"\x80\x02}" + text("a") + b"](" + b"K\1" * 250_000 + b"es."))
    assert read_pickled(path) == {"a": [1] * 250_000}
