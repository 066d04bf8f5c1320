"""The options that save memory, and what each sets in a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from sfumato.errors import InputError
from sfumato.quantization.names import check_kind

if TYPE_CHECKING:  # imported by who draws, so that --help is instant
    import torch

VaeTiling = Annotated[
    bool,
    typer.Option("--vae-tiling", show_envvar=False, help="Decode large pictures in parts."),
]
AttentionSlicing = Annotated[
    bool,
    typer.Option("--attention-slicing", show_envvar=False, help="Attend a few heads at a time."),
]
LowMemory = Annotated[
    bool,
    typer.Option(
        "--low-memory", show_envvar=False, help="Hold what is computing, and tile; slower."
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        *("--quantization", "--type"),
        metavar="NAME",
        show_envvar=False,
        help="Smaller weights: int8 (fastest), int8-weights or int4.",
    ),
]


#: Names in a recipe, which are those of the options.
_SWITCHES = ("vae-tiling", "attention-slicing", "low-memory")


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Which options were given.

    Raises:
        InputError: there is no such quantization.
    """

    vae_tiling: bool = False
    attention_slicing: bool = False
    low_memory: bool = False
    quantization: str | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None:
            check_kind(self.quantization, of_files=True)

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Self:
        """What a recipe says.

        Raises:
            InputError: it names other switches.
        """
        text = recipe.get("memory") or ""
        switches = [part.strip() for part in text.split("+")] if text else []
        unknown = [name for name in switches if name not in _SWITCHES]
        if unknown:
            raise InputError(
                f"There is no switch {unknown[0][:40]!r} that saves memory.",
                hint=f"Known: {', '.join(_SWITCHES)}.",
            )
        fields = {name.replace("-", "_"): True for name in switches}
        return cls(quantization=recipe.get("quantization"), **fields)

    def fields(self) -> dict[str, str | None]:
        """The fields of a recipe that say this; None for what is not asked for."""
        switches = [name for name in _SWITCHES if getattr(self, name.replace("-", "_"))]
        return {"quantization": self.quantization, "memory": " + ".join(switches) or None}

    def waits_in_files(self, device: torch.device) -> bool:
        """Whether weights shall wait in files, from when they are loaded."""
        return self.low_memory and device.type == "cpu"

    def place(self, pipe: Any, device: torch.device) -> None:
        """Put a pipeline on its device, with these switches set."""
        if self.attention_slicing:
            pipe.enable_attention_slicing()
        if self.vae_tiling or self.low_memory:
            pipe.enable_vae_tiling()
        if not self.low_memory:
            pipe.to(device)
        elif self.waits_in_files(device):
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            pipe.enable_model_cpu_offload(device=device)
