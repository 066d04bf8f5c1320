"""Bodies of pickles that make what is called, or what happens later, hard to see."""

from __future__ import annotations

import struct

from tests.faults.hostile_pickles import global_name, text

_EVIL = global_name("os.system")
_DICT = global_name("collections.OrderedDict")
_STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\0tQ"
_EMPTY = (
    _STORAGE + b"K\0K\0\x85K\1\x85\x89" + _DICT + b")R"
)  # arguments of a tensor without numbers


def apply(name: str, *arguments: bytes) -> bytes:
    """A call of a function."""
    return global_name(name) + b"(" + b"".join(arguments) + b"tR"


def state(**entries: bytes) -> bytes:
    """The object on the stack is given these attributes."""
    return b"}" + b"".join(text(key) + value + b"s" for key, value in entries.items()) + b"b"


def put(value: bytes, index: int) -> bytes:
    """The value, also in the memo."""
    return value + b"q" + bytes([index])


def tricks(command: str) -> dict[str, bytes]:
    """All of them; those that run something run the command."""
    argument, one = text(command), text(command) + b"\x85"
    return {
        **_functions(argument, one),
        **_objects(argument),
        **_names(one),
        **_memo(command, one),
        **_tensors(one),
    }


def _functions(argument: bytes, one: bytes) -> dict[str, bytes]:
    code = apply(
        "types.CodeType", b"K\0" * 6, b"C\4d\0S\0", b")))", text("x") * 3, b"K\1", b"C\0" * 2
    )
    attribute = text("system")
    return {
        "partial that is called": apply("functools.partial", _EVIL, argument) + b")R",
        "method that is called": apply("operator.methodcaller", attribute, argument)
        + global_name("os.path") + b"\x85R",
        "function made by hand": apply("types.FunctionType", code, b"}") + b")R",
        "subclasses of a class": apply(
            "builtins.getattr", global_name("my_training.Callback"), text("__subclasses__")
        ) + b")R",
        "method of a tensor": apply(
            "builtins.getattr", global_name("torch.Tensor"), text("apply_")
        ),
        "attribute with a dot": apply(
            "builtins.getattr", global_name("my_training.Callback"), text("run.__globals__")
        ),
        "reader of a class": apply("my_training.Callback.__setstate__", argument),
        "bytes that are turned round": apply("_codecs.encode", argument, text("rot13")),
        "arguments that are a list": _EVIL + b"]" + argument + b"aR",
        "call of a call": _EVIL + one + b"R" + one + b"R",
        "mark among the arguments": b"((" + _EVIL + argument + b"oo",
    }  # fmt: skip


def _objects(argument: bytes) -> dict[str, bytes]:
    training = global_name("my_training.Callback") + b")\x81"
    network = global_name("torch.nn.modules.linear.Linear") + b")\x81"
    factory = apply("collections.defaultdict", _EVIL)
    array = apply(
        "numpy.core.multiarray._reconstruct", global_name("numpy.ndarray"), b"K\0\x85", b"C\1b"
    )
    objects = apply("numpy.dtype", text("O8"), b"\x89", b"\x88")
    return {
        "class made by hand": apply("builtins.type", text("X"), b")", b"}" + text("__reduce__")
                                    + _EVIL + b"s"),
        "instance of a class made by hand": apply("builtins.type", text("X"), b")", b"}")
        + b")\x81" + state(__class__=_EVIL),
        "factory of defaults": factory,
        "factory of defaults that is asked": factory + text("key") + b"Ns",
        "state in slots": _DICT + b")RN}" + text("__class__") + _EVIL + b"s\x86b",
        "dictionary of an instance": training + state(__dict__=b"}" + text("run") + _EVIL + b"s"),
        "method that takes the state": training + state(__setstate__=_EVIL) + argument + b"b",
        "hooks of a network": network + state(_forward_hooks=_DICT + b")RN" + _EVIL + b"s"),
        "objects in an array": array + b"(K\1K\1\x85" + objects + b"\x89]" + _EVIL + argument
        + b"\x85Ratb",
        "dtype of objects": objects,
        "function among the values": b"}" + text("a") + _EVIL + b"s",
        "function as a key": b"}" + _EVIL + text("a") + b"s",
        "list in itself": put(b"]", 1) + b"h\1a",
        "dictionary in itself": put(b"}", 1) + text("a") + b"h\1s",
    }  # fmt: skip


def _names(one: bytes) -> dict[str, bytes]:
    modules = {
        "letters that look alike": "\uff4fs",
        "module with a line break": "os\n",
        "module with a NUL": "os\0",
        "module without a name": "",
        "module with a leading dot": ".os",
        "module in capitals": "OS",
        "path in place of a module": "../../os",
    }
    calls = {k: text(m) + text("system") + b"\x93" + one + b"R" for k, m in modules.items()}
    return {**calls, "name that is a list": text("os") + b"]\x93" + one + b"R"}


def _memo(command: str, one: bytes) -> dict[str, bytes]:
    raw = command.encode()
    return {
        "memo that is written twice": put(_DICT, 1) + b"0" + put(_EVIL, 1) + b"0h\1" + one + b"R",
        "memo that is counted": _DICT + b"\x940" + _EVIL + b"\x940h\1" + one + b"R",
        "memo that is far away": _EVIL + b"r\0\0\1\0" + b"0j\0\0\1\0" + one + b"R",
        "memo by text": _EVIL + b"p7\n0g7\n" + one + b"R",
        "protocol in the middle": _EVIL + b"\x80\0" + one + b"\x80\5R",
        "frame around nothing": b"\x95" + bytes(8) + _EVIL + b"\x95\xff" + bytes(7) + one + b"R",
        "pickle in bytes": b"C" + bytes([len(raw) + 12]) + b"cos\nsystem\n" + b"(" + raw + b"R",
        "pickle in changeable bytes": b"\x96" + struct.pack("<Q", len(raw)) + raw,
    }


def _storage(kind: bytes, key: str) -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + b"K\6tQ"


def _tensors(one: bytes) -> dict[str, bytes]:
    tensor = apply("torch._utils._rebuild_tensor_v2", _EMPTY)
    plain, derived = "torch._utils._rebuild_tensor_v2", "torch._tensor._rebuild_from_type_v2"
    evil_call = _EVIL + one + b"R"
    return {
        "storage of a function": _storage(_EVIL, "0"),
        "storage made by a call": _storage(evil_call, "0"),
        "storage outside of the archive": _storage(b"ctorch\nFloatStorage\n", "../../etc/passwd"),
        "hooks of a tensor": apply(plain, _STORAGE + b"K\0K\0\x85K\1\x85\x89" + _DICT + b")R"
                                   + text("hook") + evil_call + b"s"),
        "state of a tensor": tensor + state(__class__=_EVIL),
        "items of a tensor": tensor + text("key") + _EVIL + b"s",
        "elements of a tensor": tensor + _EVIL + b"a",
        "elements of a storage": _STORAGE + _EVIL + b"a",
        "state of a storage": _STORAGE + evil_call + b"b",
        "tensor of a class of its own": apply(derived, global_name(plain), _EVIL,
                                              b"(" + _EMPTY + b"t", b"}"),
        "tensor rebuilt from a tensor": apply(derived, global_name(derived),
                                              global_name("torch.Tensor"), b")", b"N"),
        "parameter of a function": apply("torch._utils._rebuild_parameter", _EVIL, b"\x88", _DICT),
        "sparse tensor": apply("torch._utils._rebuild_sparse_tensor", evil_call),
    }  # fmt: skip
