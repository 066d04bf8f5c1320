"""diffusers: as installed, in bfloat16, and compiled."""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.cpu_peers.job import Job, Runner
from benchmarks.cpu_peers.ours import runner


def load(job: Job, dtype: str, compiled: bool = False) -> Runner:
    """A pipeline, compiled with its weights frozen if asked for."""
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(job.threads)
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        job.model, torch_dtype=getattr(torch, dtype), safety_checker=None
    )
    if compiled:
        compile_parts(pipe, job)
    return runner(pipe, job, getattr(torch, dtype))


def compile_parts(pipe: Any, job: Job) -> None:
    """`torch.compile`, which does its work in the first call of each shape."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(job.cache / "inductor"))
    import torch._inductor.config as inductor

    inductor.freezing = True
    pipe.unet = torch.compile(pipe.unet)
    pipe.vae.decode = torch.compile(pipe.vae.decode)
    pipe.text_encoder = torch.compile(pipe.text_encoder)


def network(job: Job) -> torch.nn.Module:
    """The part alone in float32, for converters: a module from `Job.inputs` to one tensor."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    classes: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    folder = "text_encoder" if job.part == "text" else job.part
    made = classes.get(folder, CLIPTextModel).from_pretrained(
        job.model, subfolder=folder, torch_dtype=torch.float32
    )
    return {"unet": UNet, "vae": Decoder, "text": Text}[job.part](made).eval()


class UNet(torch.nn.Module):
    """The UNet with its inputs in the order of `Job.inputs`."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class Decoder(torch.nn.Module):
    """The autoencoder's second half."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent_sample, return_dict=False)[0]


class Text(torch.nn.Module):
    """The text encoder, whose last states are asked for."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids, return_dict=False)[0]
