"""The options that save memory, and what each sets in a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

    def place(self, pipe: Any, device: torch.device) -> None:
        """Put a pipeline on its device, with these switches set."""
        if self.attention_slicing:
            pipe.enable_attention_slicing()
        if self.vae_tiling or self.low_memory:
            pipe.enable_vae_tiling()
        if not self.low_memory:
            pipe.to(device)
        elif device.type == "cpu":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            pipe.enable_model_cpu_offload(device=device)
