"""Damage to pickles: programs for a stack machine, changed an opcode at a time."""

from __future__ import annotations

import pickletools
import random
from collections.abc import Sequence
from itertools import pairwise

from tests.fuzz.damage import flipped

#: Names that a mutated program calls: makers of tensors, plain classes, and weapons.
NAMES = (
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch FloatStorage",
    "torch._utils _rebuild_parameter", "torch._tensor _rebuild_from_type_v2", "torch Size",
    "torch UntypedStorage", "torch float16", "collections OrderedDict", "collections defaultdict",
    "builtins getattr", "builtins list", "builtins set", "_codecs encode", "copyreg _reconstructor",
    "copyreg __newobj__", "my_training Callback", "my.training.stage Stage", "os system",
    "builtins eval", "numpy.core.multiarray scalar", "torch.storage _load_from_bytes",
    "numpy dtype",
    "collections.abc sys.modules", "argparse Namespace", "pathlib PosixPath", "torch.nn Linear",
)  # fmt: skip

_TEXTS = (
    b"storage",
    b"0",
    b"1",
    b"cpu",
    b"cuda:0",
    b"state_dict",
    b"",
    b"x" * 300,
    b"\xff\xfe",
    b"a.b",
)


def instructions(data: bytes) -> list[bytes]:
    """A sound pickle, cut into its opcodes with their arguments."""
    positions = [position for _, _, position in pickletools.genops(data)]
    return [data[a:b] for a, b in pairwise([*positions, len(data)])]


def any_instruction(r: random.Random) -> bytes:
    """Any opcode there is, with an argument that is mostly of the right form."""
    opcode = r.choice(pickletools.opcodes)
    return opcode.code.encode("latin-1") + (_argument(r, opcode.arg) if opcode.arg else b"")


def _argument(r: random.Random, kind: pickletools.ArgumentDescriptor) -> bytes:
    if kind.name == "stringnl_noescape_pair":
        return r.choice(NAMES).replace(" ", "\n").encode() + b"\n"
    if kind.n == pickletools.UP_TO_NEWLINE:
        return r.choice([b"0", b"1", b"00", b"01", b"-7", b"1L", b"'a'", b"1e999", *_TEXTS]) + b"\n"
    if kind.n >= 0:
        return r.choice([bytes(kind.n), b"\xff" * kind.n, b"\x01" + bytes(max(0, kind.n - 1)),
                         r.randbytes(kind.n)])[: kind.n]  # fmt: skip
    width = {
        pickletools.TAKEN_FROM_ARGUMENT1: 1,
        pickletools.TAKEN_FROM_ARGUMENT4: 4,
        pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    }.get(kind.n, 8)
    text = r.choice(_TEXTS)
    if width == 1:
        text = text[:255]
    length = r.choice([len(text)] * 6 + [0, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2**20])
    return min(length, 2 ** (8 * width) - 1).to_bytes(width, "little") + text


def rewritten(r: random.Random, program: Sequence[bytes], other: Sequence[bytes]) -> bytes:
    """The program with instructions removed, repeated, moved, replaced, or of another program."""
    code = list(program)
    if r.random() < 0.3:  # little: one argument
        place = r.randrange(len(code))
        code[place] = _nearly_the_same(r, code[place])
        return b"".join(code)
    for _ in range(r.choice([1, 1, 1, 2, 3, 8])):
        place = r.randrange(len(code) + 1)
        length = r.choice([1, 1, 2, 5, 20])
        match r.randrange(10):
            case 0:
                del code[place : place + length]
            case 1:
                code[place:place] = code[place : place + length] * r.choice([1, 1, 2, 50])
            case 2:
                start = r.randrange(len(code) + 1)
                code[place:place] = code[start : start + length]
            case 3:
                start = r.randrange(len(other) + 1)
                code[place:place] = other[start : start + length]
            case 4:
                code[place : place + 1] = [any_instruction(r)]
            case 5:
                code[place:place] = [any_instruction(r) for _ in range(length)]
            case 6 if place < len(code):
                code[place] = flipped(r, code[place])
            case 7 if place < len(code):  # the same opcode with another argument
                code[place] = _same_with_other_argument(r, code[place])
            case 8:
                code = [*code[:place], *other[r.randrange(len(other) + 1) :]]
            case _:
                code[place:place] = _call(r)
    return b"".join(code)


def _same_with_other_argument(r: random.Random, instruction: bytes) -> bytes:
    code = instruction[:1].decode("latin-1")
    opcode = next((opcode for opcode in pickletools.opcodes if opcode.code == code), None)
    if opcode is None or opcode.arg is None:
        return any_instruction(r)
    return instruction[:1] + _argument(r, opcode.arg)


def _nearly_the_same(r: random.Random, instruction: bytes) -> bytes:
    """The same opcode with one byte of its argument changed, if it has one."""
    if len(instruction) < 2:
        return instruction * r.choice([0, 1, 2])
    place = r.randrange(1, len(instruction))
    changed = (instruction[place] + r.choice([-1, 1, 16, 128])) % 256
    return instruction[:place] + bytes([changed]) + instruction[place + 1 :]


def _call(r: random.Random) -> list[bytes]:
    """A call of some name, in one of the ways there are."""
    module, name = r.choice(NAMES).encode().split(b" ")
    text = r.choice(_TEXTS)[:200]
    push = b"\x8c" + bytes([len(text)]) + text
    function = r.choice([
        b"c" + module + b"\n" + name + b"\n",
        b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93",
    ])  # fmt: skip
    return r.choice([
        [function, push, b"\x85", b"R"],
        [function, b")", b"R"],
        [function, push, b"\x85", b"\x81"],
        [function, b")", b"}", b"\x92"],
        [b"(", function, push, b"o"],
        [b"(", push, b"i" + module + b"\n" + name + b"\n"],
        [function, b")", b"R", b"}", push, push, b"s", b"b"],
        [function, function, push, b"\x86", b"R"],
        [push, b"Q"],
        [function],
    ])  # fmt: skip
