"""Damage to bytes and to JSON values, by a random generator that the caller seeds."""

from __future__ import annotations

import json
import random
import re
from typing import Any

#: Values that have broken readers before.
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e308, "",
    "F32", "F64", "I8", "../x", "\ud800", "\0", [], {}, [[]], [0], [-1], [2**40, 2**40], {"a": 1},
    "x" * 999,
]  # fmt: skip

#: Spellings of numbers that JSON or Python refuse, or take for something else.
_NUMBERS = ("NaN", "-Infinity", "1e400", "-1e-400", "9" * 5000, "1.0", "1e3", "0x10", "1_000", "-0")


def flipped(r: random.Random, data: bytes) -> bytes:
    """Some bytes changed, removed, repeated or put in; more often near the start."""
    mutable = bytearray(data)
    for _ in range(r.choice([1, 1, 2, 4, 16])):
        position = int(len(mutable) * r.random() ** r.choice([1, 3])) if mutable else 0
        length = r.choice([1, 1, 2, 8, 100])
        match r.randrange(6):
            case 0:
                mutable[position : position + 1] = bytes([r.randrange(256)])
            case 1:
                del mutable[position : position + length]
            case 2:
                mutable[position:position] = mutable[position : position + length]
            case 3:
                mutable[position:position] = bytes(r.randrange(256) for _ in range(length))
            case 4:
                mutable[position : position + 1] = r.choice([b"[", b"{", b'"', b"9", b"-", b"]"])
            case _:
                mutable = mutable[: max(position, 1)] if r.random() < 0.3 else mutable
    return bytes(mutable)


def extreme(r: random.Random, data: bytes) -> bytes:
    """A number in the bytes, of any width, replaced by one at the end of its range."""
    width = r.choice([1, 2, 4, 8])
    position = r.randrange(max(1, len(data) - width))
    number = r.choice([0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1])
    raw = number.to_bytes(width, r.choice(["little", "big"]))
    return data[:position] + raw + data[position + width :]


def spliced(r: random.Random, one: bytes, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    return one[: r.randrange(len(one) + 1)] + other[r.randrange(len(other) + 1) :]


def any_bytes(r: random.Random, data: bytes, other: bytes) -> bytes:
    """One of the kinds of damage that know nothing of the format."""
    match r.randrange(8):
        case 0:
            return extreme(r, data)
        case 1:
            return spliced(r, data, other)
        case 2:
            return data[: r.randrange(len(data) + 1)]
        case 3:
            return data + other
        case _:
            return flipped(r, data)


def changed(r: random.Random, value: Any) -> Any:
    """The JSON value with one place in it replaced, removed, renamed or repeated."""
    if isinstance(value, dict) and value and r.random() < 0.9:
        key = r.choice(list(value))
        copy = dict(value)
        match r.randrange(8):
            case 0:
                del copy[key]
            case 1:
                copy[str(r.choice(ODD))] = copy.pop(key)
            case 2:
                copy[key] = r.choice(list(value.values()))
            case _:
                copy[key] = changed(r, value[key])
        return copy
    if isinstance(value, list) and value and r.random() < 0.7:
        place = r.randrange(len(value))
        return [*value[:place], changed(r, value[place]), *value[place + r.randrange(3) :]]
    if isinstance(value, int) and not isinstance(value, bool) and r.random() < 0.5:
        return value + r.choice([-8, -1, 1, 4, 2**32])
    return r.choice(ODD)


def changed_often(r: random.Random, value: Any) -> Any:
    """The JSON value changed in one to three places, now and then in none."""
    for _ in range(r.choice([0, 1, 1, 1, 2, 3])):
        value = gently_changed(r, value) if r.random() < 0.3 else changed(r, value)
    return value


def gently_changed(r: random.Random, value: Any) -> Any:
    """The JSON value with one number or word in it replaced by one of the same kind."""
    if isinstance(value, dict) and value:
        key = r.choice(list(value))
        return {**value, key: gently_changed(r, value[key])}
    if isinstance(value, list) and value:
        place = r.randrange(len(value))
        return [*value[:place], gently_changed(r, value[place]), *value[place + 1 :]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return r.choice([0, 1, 2, 3, 16, 64, 100, 1000, 2**20, value + 1, value * 2, -value])
    if isinstance(value, float):
        return r.choice([0.0, 1.0, -1.0, 1e-12, 0.5, 0.999, 100.0, 1e30, value * 2, -value])
    if isinstance(value, str):
        return r.choice(["", value + "x", value.upper(), value[::-1], " " + value, value * 2])
    return value


def json_bytes(r: random.Random, value: Any) -> bytes:
    """The value as text; now and then as text that no writer of JSON would write."""
    text = json.dumps(value)
    match r.randrange(40):
        case 0:
            text = _other_number(r, text)
        case 1:  # a key twice
            keys = re.findall(r'"\w+": ', text)
            text = text.replace("{", "{" + r.choice(keys) + "0, ", 1) if keys else text
        case 2:
            depth = r.choice([50, 5000, 50_000])
            text = r.choice(['{"a":', "["]) * depth + text
        case 3:
            text = text.replace("0", r.choice(["[" * 9000, '{"a":' * 9000]), 1)
        case 4:
            return flipped(r, text.encode())
        case 5:
            return r.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b" " * 3000]) + text.encode()
        case _:
            pass
    return text.encode()


def _other_number(r: random.Random, text: str) -> str:
    places = list(re.finditer(r"\b\d+\b", text))
    if not places:
        return text
    place = r.choice(places)
    return text[: place.start()] + r.choice(_NUMBERS) + text[place.end() :]
