"""A slice of the fuzzing, what it found before, and whether it would see what it looks for."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import pytest

from tests.fuzz.batches import try_input
from tests.fuzz.kinds import KINDS, make_input, prepare

ROOT = Path(__file__).parents[2]
FOUND = sorted(path for path in (Path(__file__).parent / "found").rglob("*") if path.is_file())

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits processes as Linux does")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "5"},
    )


@linux
def test_a_slice_of_the_damaged_files_breaks_nothing() -> None:
    result = python("-m", "tests.fuzz", "--count", "1500", "--seed", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "failures: 0" in result.stdout


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("found", FOUND, ids=lambda path: f"{path.parent.name}: {path.stem}")
def test_what_broke_a_reader_once_breaks_none_again(tmp_path: Path, found: Path) -> None:
    name = found.parent.name
    path = prepare(tmp_path)[name]
    KINDS[name].write(path, found.read_bytes())
    for reader in KINDS[name].readers:
        try_input(reader, path)


def test_there_are_files_that_broke_a_reader() -> None:
    assert len(FOUND) >= 10


def test_every_kind_is_sometimes_read_and_sometimes_refused() -> None:
    """Damage that every reader refuses at its first look would test the first look alone."""
    with TemporaryDirectory() as folder:
        places = prepare(Path(folder))
        for name, kind in KINDS.items():
            outcomes = set()
            for number in range(400):
                kind.write(places[name], kind.make(random.Random(number)))
                outcomes |= {try_input(read, places[name]) for read in kind.readers}
                if "read" in outcomes and len(outcomes) > 1:
                    break
            assert "read" in outcomes or name == "bare pickle", name
            assert outcomes != {"read"} or name == "infotext", name


#: Readers that do what none may, and what the report has to say of each.
PLANTED = """
import faulthandler, os
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32
from tests.fuzz import batches, watch
from tests.fuzz.kinds import KINDS, Kind, make_input
from sfumato.errors import ConfigError

def refuse(path): raise ConfigError("x" * 3000)
def hang(path):
    while True: pass
def allocate(path): return bytearray(8 * 2**30)
def write(path): (path.parent / "new").write_text("x")
def look(path): open("/etc/hostname")
def run(path): os.system("true")
def load(path): import antigravity
def catch(path):
    try: os.system("true")
    except BaseException: pass
def crash(path): faulthandler._sigsegv()
def leave(path): os._exit(3)
def odd(path): raise KeyError("odd")
def fine(path): pass

watch.TIME = 0.3
print(crc32(b"".join(make_input(3, number)[1] for number in range(300))))
for reader in (refuse, hang, allocate, write, look, run, load, catch, crash, leave, odd, fine):
    KINDS.clear()
    KINDS["planted"] = Kind("m.bin", lambda r: b"x", (reader,))
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        report = batches.run_batch(0, range(3), Path(folder))
        os.chdir("/")
    print(reader.__name__, report.count, *[failure[2] for failure in report.failures], sep=" | ")
"""

EXPECTED = {
    "refuse": "a message of 3000 letters",
    "hang": "Hang('more than 0.3 s of CPU time')",
    "allocate": "MemoryError()",
    "write": "Forbidden(\"open ('",
    "look": "Forbidden(\"open ('/etc/hostname'",
    "run": "Forbidden(\"os.system (b'true',)\")",
    "load": "Forbidden(\"import ('antigravity'",
    "catch": "Forbidden(\"os.system (b'true',)\")",
    "crash": "the child died of SIGSEGV",
    "leave": "the child ended with 3",
    "odd": "KeyError('odd')",
}


@linux
def test_the_watch_sees_what_it_watches_for() -> None:
    result = python("-c", PLANTED)
    checksum, *lines = result.stdout.splitlines()
    assert len(lines) == len(EXPECTED) + 1, result.stdout + result.stderr
    for line in lines:
        name, count, *failures = line.split(" | ")
        assert count == "3"
        assert len(failures) == (0 if name == "fine" else 3), line
        assert all(EXPECTED[name] in failure for failure in failures), line
    here = b"".join(make_input(3, number)[1] for number in range(300))
    assert int(checksum) == crc32(here), "an input follows from its seed and number alone"
