"""The options that save memory, and what each sets in a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

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


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Which options were given."""

    vae_tiling: bool = False
    attention_slicing: bool = False
    low_memory: bool = False

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
