"""The table of contenders: where each is loaded, what it needs, which parts it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

NETWORKS = ("unet", "vae", "text")
ALL = (*NETWORKS, "image")


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: as on the command line.
        module: in this package; has ``load(job, **options) -> Runner`` and, where something has to
            be converted once, ``prepare(job, **options)``.
        precision: of the arithmetic.
        parts: what it can be asked for.
        memory: bytes of peak memory for each parameter, by experience, to decide who fits beside
            whom.
        needs: packages without which it is not there.
        converts: whether its module has ``prepare``.
        options: for `load` and `prepare`.
    """

    name: str
    module: str
    precision: str
    parts: tuple[str, ...] = ALL
    memory: float = 6.0
    needs: tuple[str, ...] = ()
    converts: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Those of the needed packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


DIFFUSERS = ("diffusers", "transformers")
CONVERTED = ("openvino", *DIFFUSERS)

CONTENDERS = (
    Contender("sfumato-float32", "ours", "float32", memory=7, options={"dtype": "float32"}),
    Contender("sfumato-bfloat16", "ours", "bfloat16", memory=5, options={"dtype": "bfloat16"}),
    Contender(
        "sfumato-int8",
        "ours",
        "int8",
        memory=3,
        options={"dtype": "bfloat16", "quantization": "int8"},
    ),
    Contender(
        "sfumato-openvino",
        "ours",
        "bfloat16",
        ("unet", "vae", "image"),
        memory=5,
        needs=("openvino",),
        options={"dtype": "bfloat16", "stored": ("unet", "vae"), "engine": "openvino"},
    ),
    Contender(
        "sfumato-compile-float32",
        "ours",
        "float32",
        ("unet", "vae", "image"),
        memory=7,
        options={"dtype": "float32", "engine": "compile"},
    ),
    Contender(
        "sfumato-compile-bfloat16",
        "ours",
        "bfloat16",
        ("unet", "vae", "image"),
        memory=5,
        options={"dtype": "bfloat16", "engine": "compile"},
    ),
    Contender(
        "sfumato-jax-float32",
        "jax_ours",
        "float32",
        NETWORKS,
        memory=9,
        needs=("jax",),
        options={"dtype": "float32"},
    ),
    Contender(
        "sfumato-jax-bfloat16",
        "jax_ours",
        "bfloat16",
        NETWORKS,
        memory=6,
        needs=("jax",),
        options={"dtype": "bfloat16"},
    ),
    Contender(
        "diffusers-float32",
        "with_diffusers",
        "float32",
        memory=7,
        needs=DIFFUSERS,
        options={"dtype": "float32"},
    ),
    Contender(
        "diffusers-bfloat16",
        "with_diffusers",
        "bfloat16",
        memory=4.5,
        needs=DIFFUSERS,
        options={"dtype": "bfloat16"},
    ),
    Contender(
        "diffusers-compiled",
        "with_diffusers",
        "bfloat16",
        memory=8,
        needs=DIFFUSERS,
        options={"dtype": "bfloat16", "compiled": True},
    ),
    Contender(
        "openvino-float32",
        "with_openvino",
        "float32",
        NETWORKS,
        memory=10,
        needs=CONVERTED,
        converts=True,
        options={"hint": "f32"},
    ),
    Contender(
        "openvino-bfloat16",
        "with_openvino",
        "bfloat16",
        NETWORKS,
        memory=7,
        needs=CONVERTED,
        converts=True,
        options={"hint": "bf16"},
    ),
    Contender(
        "openvino-int8",
        "with_openvino",
        "int8",
        NETWORKS,
        memory=4,
        needs=(*CONVERTED, "nncf"),
        converts=True,
        options={"hint": "bf16", "quantized": True},
    ),
    Contender(
        "openvino-genai",
        "with_genai",
        "bfloat16",
        ("unet", "vae", "image"),
        memory=8,
        needs=(*CONVERTED, "openvino_genai", "openvino_tokenizers"),
        converts=True,
    ),
    Contender(
        "onnxruntime",
        "with_onnx",
        "float32",
        NETWORKS,
        memory=10,
        needs=("onnxruntime", "onnx", *DIFFUSERS),
        converts=True,
    ),
    Contender(
        "stable-diffusion.cpp",
        "with_sdcpp",
        "float16",
        ("unet", "vae", "image"),
        memory=5,
        needs=("stable_diffusion_cpp",),
        converts=True,
    ),
)

#: What the ceiling is measured in.
PRECISIONS = ("float32", "bfloat16", "int8")


def find(names: list[str]) -> list[Contender]:
    """The contenders of these names.

    Raises:
        SystemExit: for a name that is none.
    """
    table = {contender.name: contender for contender in CONTENDERS}
    for name in names:
        if name not in table:
            raise SystemExit(f"There is no contender {name!r}; there are {', '.join(table)}.")
    return [table[name] for name in names]
