"""Every variant of the compiled kernels: a type of numbers, and instructions to compute with."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from sfumato.native.library import AVX2, AVX512, BF16, features

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Instruction sets to hold the kernels to.
_SETS = {"avx2": AVX2, "avx512": AVX2 | AVX512, "avx512_bf16": AVX2 | AVX512 | BF16}


class Variant(NamedTuple):
    """What a test asks the fixture `variant` for."""

    kind: str
    instructions: int


def _params(kind: str, *names: str) -> list[Any]:
    return [
        pytest.param(
            Variant(kind, _SETS[name]),
            id=f"{kind}-{name}",
            marks=pytest.mark.skipif(
                features() & _SETS[name] != _SETS[name], reason=f"no {name} here"
            ),
        )
        for name in names
    ]


FLOAT32 = _params("float32", "avx2", "avx512")
BFLOAT16 = _params("bfloat16", "avx2", "avx512", "avx512_bf16")
ALL = [*FLOAT32, *BFLOAT16]

each_float32 = pytest.mark.parametrize("variant", FLOAT32, indirect=True)
each_bfloat16 = pytest.mark.parametrize("variant", BFLOAT16, indirect=True)
