"""Loads one checkpoint with one library, without any network, and saves what it gives.

python -m tests.parity.official_child sfumato FILE CONFIGS OUTPUT [average]
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from tests.parity.single_file_child import forbid_sockets, latents, network_outputs


def load(library: str, file: str, configs: str, average: bool) -> Any:
    """The pipeline in float32; sfumato is given the file alone."""
    if library == "sfumato":
        from sfumato import StableDiffusionPipeline

        return StableDiffusionPipeline.from_single_file(file, extract_ema=average)
    import diffusers

    return diffusers.StableDiffusionPipeline.from_single_file(
        file, config=configs, local_files_only=True, torch_dtype=torch.float32
    )


def main(library: str, file: str, configs: str, output: str, average: bool = False) -> None:
    """Load, compute, save."""
    sys.addaudithook(forbid_sockets)
    started = time.process_time()
    pipe = load(library, file, configs, average)
    results: dict[str, Any] = {"seconds": time.process_time() - started}
    results["prediction_type"] = pipe.scheduler.config.prediction_type
    results["scheduler"] = type(pipe.scheduler).__name__
    results |= network_outputs(pipe)
    if pipe.unet.config.in_channels == 4:
        results["drawn"] = latents(pipe)
    results["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.save(results, output)


if __name__ == "__main__":
    main(*sys.argv[1:5], average="average" in sys.argv[5:])
