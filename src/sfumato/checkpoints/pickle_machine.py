"""Pickles read as data: a small machine for the format's opcodes that never calls or imports.

A pickle is a program for a stack machine. Python's own machine fetches any function by name and
calls it; this one keeps names as names. What a name stands for is decided by a table of functions
of ours (see `pickle_names`); objects of any other class become an `Opaque` note of what the file
said, or the file is refused.

Time and memory are linear in the bytes read, whatever they say, and bounded: nothing is hashed but
plain values, integers are short, opcodes are counted, and so is what calls are given.

Opcodes are documented in Python's ``pickletools``.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_TEXT_INTEGER = 24  # more digits than any 64-bit number has
_MAX_INTEGER_BYTES = 16
_MAX_INTEGER_KEY = 2**24

#: A checkpoint with an optimizer's state has less than a million; each may make an object.
_MAX_OPCODES = 2**22


class PickleError(ValueError):
    """The bytes are no sound pickle, or one with something in it that is never needed."""


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a class or function, as the file spells it. Nothing was looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Opaque:
    """An object of a class that is not known here: what the file says of it, and nothing else.

    Its text is its name alone: values of a pickle can share their parts so that spelling them out
    would never end.

    Attributes:
        name: of its class, or of the function that would have made it.
        arguments: that the class or function would have been called with.
        state: that the object would have been given.
        items: entries of an object that acts as a dictionary.
        elements: entries of an object that acts as a list.
    """

    name: Name
    arguments: tuple[Any, ...] = field(default=(), repr=False)
    state: Any = field(default=None, repr=False)
    items: dict[Any, Any] = field(default_factory=dict, repr=False)
    elements: list[Any] = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class UnusualKey:
    """In place of a dictionary's key that is no short plain value; equal to itself alone."""

    value: Any = field(repr=False)

    def __str__(self) -> str:
        return f"a key of the type {type(self.value).__name__}"


#: Makes a value from a name and arguments; raises `PickleError` to refuse them.
Call = Callable[[Name, tuple[Any, ...]], Any]


def read_pickle_data(
    data: bytes, *, start: int = 0, call: Call, persistent: Callable[[Any], Any] | None = None
) -> tuple[Any, int]:
    """The value of the pickle that begins at ``start``, and the position behind it.

    Sets come as lists, since their elements would have to be hashed.

    Args:
        data: the bytes.
        start: where the pickle begins.
        call: what to make of a class or function with arguments.
        persistent: what to make of a reference to something outside the pickle.

    Raises:
        PickleError: see there; also whatever ``call`` and ``persistent`` raise.
    """
    machine = _Machine(data, start, call, persistent)
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError):  # popped from an empty stack, or never memoized
        raise PickleError("the pickle is damaged") from None


class _Machine:
    def __init__(
        self,
        data: bytes,
        start: int,
        call: Call,
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.data = data
        self.position = start
        self.call = call
        self.persistent = persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.budget = 2**20 + 16 * len(data)  # for arguments, which a pickle may give repeatedly

    def run(self) -> Any:
        for _ in range(_MAX_OPCODES):
            opcode = self.take(1)
            if opcode == b".":
                if self.outer or len(self.stack) != 1:
                    raise PickleError("the pickle ends in the middle")
                return self.stack.pop()
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise PickleError(f"the pickle has the opcode {opcode!r}, which is never needed")
            handler(self)
        raise PickleError("the pickle is absurdly long")

    # Bytes in

    def take(self, count: int) -> bytes:
        stop = self.position + count
        taken = self.data[self.position : stop]
        if len(taken) != count:
            raise PickleError("the pickle is cut short")
        self.position = stop
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        stop = self.data.find(b"\n", self.position)
        if stop < 0:
            raise PickleError("the pickle is cut short")
        return self.take(stop + 1 - self.position)[:-1]

    def block(self, form: str) -> bytes:
        """Bytes behind their own length."""
        length = self.number(form)
        if length < 0:
            raise PickleError("the pickle has a negative length")
        return self.take(length)

    # Stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.outer.pop()
        return values

    # Objects

    def make(self, name: Any, arguments: Any) -> Any:
        if not isinstance(name, Name):
            raise PickleError("the pickle calls something that has no name")
        if not isinstance(arguments, tuple):
            raise PickleError("the pickle calls something without a list of arguments")
        self.budget -= 1 + len(arguments) + sum(len(a) for a in arguments if hasattr(a, "__len__"))
        if self.budget < 0:
            raise PickleError("the pickle repeats itself absurdly")
        return self.call(name, arguments)

    def build(self) -> None:
        """Give an object its state; values of ours have none, so it is dropped there."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Opaque):
            target.state = state
        elif isinstance(target, Name):
            raise PickleError(f"the pickle changes `{target}`, which no honest one does")

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        table = target.items if isinstance(target, Opaque) else target
        if not isinstance(table, dict) or len(values) % 2:
            raise PickleError("the pickle is damaged")
        for key, value in zip(values[::2], values[1::2], strict=True):
            table[_key(key)] = value

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        elements = target.elements if isinstance(target, Opaque) else target
        if not isinstance(elements, list):
            raise PickleError("the pickle is damaged")
        elements.extend(values)


def _key(value: Any) -> Any:
    """The value itself when hashing it is quick and cannot be made to collide."""
    if value is None or isinstance(value, str | bytes | Name):
        return value
    if isinstance(value, int) and abs(value) < _MAX_INTEGER_KEY:
        return value
    return UnusualKey(value)


def _text(raw: bytes) -> str:
    """Text of Python 2, which did not say in what encoding, or of 3 (with lone surrogates)."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _integer(raw: bytes) -> int:
    if len(raw) > _MAX_INTEGER_BYTES:
        raise PickleError("the pickle has an integer of absurd length")
    return int.from_bytes(raw, "little", signed=True)


def _digits(raw: bytes) -> int:
    text = raw.decode("latin-1").removesuffix("L")
    if len(text) > _TEXT_INTEGER:
        raise PickleError("the pickle has an integer of absurd length")
    try:
        return int(text)
    except ValueError:
        raise PickleError("the pickle has an integer that is none") from None


def _small_or_flag(raw: bytes) -> int | bool:
    """``00`` and ``01`` were the first protocol's way to write False and True."""
    return {b"00": False, b"01": True}.get(raw, _digits(raw))


def _float(raw: bytes) -> float:
    try:
        return float(raw[:64])
    except ValueError:
        raise PickleError("the pickle has a number that is none") from None


def _quoted(raw: bytes) -> str:
    if len(raw) < 2 or raw[:1] not in (b"'", b'"') or raw[-1:] != raw[:1]:
        raise PickleError("the pickle has a string without quotes")
    try:
        return _text(codecs.escape_decode(raw[1:-1])[0])
    except ValueError:
        raise PickleError("the pickle has a damaged string") from None


def _escaped(raw: bytes) -> str:
    try:
        return raw.decode("raw-unicode-escape")
    except UnicodeDecodeError:
        raise PickleError("the pickle has a damaged string") from None


def _name(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleError("the pickle has a name that is no text")
    return Name(module, name)


# What each opcode does


def _protocol(m: _Machine) -> None:
    if m.take(1)[0] > 5:
        raise PickleError("the pickle has an unknown protocol")


def _pop(m: _Machine) -> None:
    m.stack.pop() if m.stack else m.since_mark()


def _memoize(m: _Machine, index: int) -> None:
    if not 0 <= index < _MAX_INTEGER_KEY:
        raise PickleError("the pickle numbers its values absurdly")
    m.memo[index] = m.stack[-1]


def _tuple(m: _Machine, count: int) -> None:
    if len(m.stack) < count:
        raise IndexError
    values = tuple(m.stack[-count:])
    del m.stack[-count:]
    m.push(values)


def _dict_since_mark(m: _Machine) -> None:
    values = m.since_mark()
    m.push({})
    m.set_items(values)


def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items([key, value])


def _global(m: _Machine) -> None:
    module, name = m.line(), m.line()
    m.push(_name(_text(module), _text(name)))


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.push(_name(module, name))


def _reduce(m: _Machine) -> None:
    arguments, name = m.stack.pop(), m.stack.pop()
    m.push(m.make(name, arguments))


def _new_with_keywords(m: _Machine) -> None:
    keywords, arguments, name = m.stack.pop(), m.stack.pop(), m.stack.pop()
    if not isinstance(arguments, tuple):
        raise PickleError("the pickle is damaged")
    m.push(m.make(name, (*arguments, keywords) if keywords else arguments))


def _instance(m: _Machine) -> None:
    name = _name(_text(m.line()), _text(m.line()))
    m.push(m.make(name, tuple(m.since_mark())))


def _object(m: _Machine) -> None:
    values = m.since_mark()
    m.push(m.make(values[0], tuple(values[1:])))


def _persistent(m: _Machine) -> None:
    if m.persistent is None:
        raise PickleError("the pickle refers to something outside it")
    m.push(m.persistent(m.stack.pop()))


_HANDLERS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"\x95": lambda m: m.number("<Q"),  # a frame, which only helps readers that buffer
    b"(": _Machine.mark,
    b"0": _pop,
    b"1": lambda m: (m.since_mark(), None)[1],
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(_small_or_flag(m.line())),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"L": lambda m: m.push(_digits(m.line())),
    b"\x8a": lambda m: m.push(_integer(m.block("<B"))),
    b"\x8b": lambda m: m.push(_integer(m.block("<i"))),
    b"F": lambda m: m.push(_float(m.line())),
    b"G": lambda m: m.push(m.number(">d")),
    b"S": lambda m: m.push(_quoted(m.line())),
    b"T": lambda m: m.push(_text(m.block("<i"))),
    b"U": lambda m: m.push(_text(m.block("<B"))),
    b"V": lambda m: m.push(_escaped(m.line())),
    b"X": lambda m: m.push(_text(m.block("<I"))),
    b"\x8c": lambda m: m.push(_text(m.block("<B"))),
    b"\x8d": lambda m: m.push(_text(m.block("<Q"))),
    b"B": lambda m: m.push(m.block("<I")),
    b"C": lambda m: m.push(m.block("<B")),
    b"\x8e": lambda m: m.push(m.block("<Q")),
    b"\x96": lambda m: m.push(m.block("<Q")),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.since_mark()),
    b"l": lambda m: m.push(m.since_mark()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"}": lambda m: m.push({}),
    b"d": _dict_since_mark,
    b"s": _set_item,
    b"u": lambda m: m.set_items(m.since_mark()),
    b"\x8f": lambda m: m.push([]),
    b"\x90": lambda m: m.append(m.since_mark()),
    b"\x91": lambda m: m.push(m.since_mark()),
    b"g": lambda m: m.push(m.memo[_digits(m.line())]),
    b"h": lambda m: m.push(m.memo[m.number("<B")]),
    b"j": lambda m: m.push(m.memo[m.number("<I")]),
    b"p": lambda m: _memoize(m, _digits(m.line())),
    b"q": lambda m: _memoize(m, m.number("<B")),
    b"r": lambda m: _memoize(m, m.number("<I")),
    b"\x94": lambda m: _memoize(m, len(m.memo)),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _reduce,
    b"\x92": _new_with_keywords,
    b"i": _instance,
    b"o": _object,
    b"b": _Machine.build,
    b"Q": _persistent,
}
