"""Operations of the networks, counted from their configurations.

The networks are built without weights and called without numbers; torch counts the multiplications
and additions of every convolution and matrix product on the way. A multiplication and an addition
are two operations.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.cpu_peers.job import Job, Shape

#: What torch's operators are told as; all others are products of activations, as in attention.
KINDS = {"convolution": "convolution", "mm": "linear", "addmm": "linear"}


def operations(job: Job, shape: Shape) -> dict[str, float]:
    """GFLOP of one call of the part, by kind: convolution, linear, attention."""
    if job.part != "image":
        return count(job, shape)
    unet, vae, text = (Job(part, *rest(job)) for part in ("unet", "vae", "text"))
    times = ((shape.steps, count(unet, shape)), (1, count(vae, shape)), (1, count(text, shape)))
    kinds = {kind for _, counted in times for kind in counted}
    return {kind: sum(n * counted.get(kind, 0.0) for n, counted in times) for kind in kinds}


def rest(job: Job) -> tuple[Any, ...]:
    """The fields of a job besides its part."""
    return job.model, job.threads, job.cache


def count(job: Job, shape: Shape) -> dict[str, float]:
    """GFLOP of a call of one network."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sfumato import AutoencoderKL, CLIPTextModel, UNet2DConditionModel

    classes: dict[str, Any] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text": CLIPTextModel,
    }
    folder = "text_encoder" if job.part == "text" else job.part
    arrays = {k: torch.from_numpy(v).to("meta") for k, v in job.inputs(shape).items()}
    with torch.device("meta"):
        network = classes[job.part].from_config(job.config(folder)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            if job.part == "unet":
                network(**arrays | {"timestep": arrays["timestep"][0]})
            elif job.part == "vae":
                network.decode(arrays["latent_sample"])
            else:
                network(arrays["input_ids"])
    found: defaultdict[str, float] = defaultdict(float)
    for operator, value in counter.get_flop_counts()["Global"].items():
        name = str(operator).rpartition(".")[2]
        found[KINDS.get(name, "attention")] += value / 1e9
    return found


def parameters(job: Job) -> int:
    """Numbers in the files of the part's weights, which tell the memory that it will take."""
    from safetensors import safe_open

    folders = {"unet": ["unet"], "vae": ["vae"], "text": ["text_encoder"]}
    total = 0
    for folder in folders.get(job.part, ["unet", "vae", "text_encoder"]):
        for path in (job.model / folder).glob("*.safetensors"):
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    numbers = 1
                    for size in file.get_slice(name).get_shape():
                        numbers *= size
                    total += numbers
    return total
