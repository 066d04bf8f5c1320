"""A whole picture with networks of Stable Diffusion 1.5's size: sfumato beside diffusers.

    python -m benchmarks.whole_picture --steps 4 --rounds 3

The weights are random and shared by both, so the two must draw the same picture; the table says how
far apart they are, how long each took, and the ratio. Rounds alternate, and medians are compared:
absolute times of a shared machine mean little. Needs diffusers and transformers (extra ``test``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from sfumato.text.clip import CLIPTextModel
from sfumato.text.tokenizer import CLIPTokenizer

VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "sample_size": 512,
}
UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
PROMPT = "a photograph of an astronaut riding a horse"


def our_pipeline(dtype: torch.dtype) -> StableDiffusionPipeline:
    """A pipeline of Stable Diffusion 1.5's size with random weights."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(VAE).to(dtype).eval(),
        text_encoder=CLIPTextModel(TEXT).to(dtype).eval(),
        tokenizer=CLIPTokenizer(),
        unet=UNet2DConditionModel(UNET).to(dtype).eval(),
        scheduler=DDIMScheduler(**NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def their_pipeline(ours: StableDiffusionPipeline) -> Any:
    """diffusers' pipeline over the very same tensors."""
    import diffusers
    import transformers

    def same(module: nn.Module, weights: nn.Module) -> nn.Module:
        module.load_state_dict(weights.state_dict(), assign=True, strict=False)
        return module.eval()

    with torch.device("meta"):
        vae = diffusers.AutoencoderKL(**VAE)
        unet = diffusers.UNet2DConditionModel(**UNET)
    # Its position ids are made on construction, so this one cannot begin on the meta device.
    text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))
    return diffusers.StableDiffusionPipeline(
        vae=same(vae, ours.vae),
        text_encoder=same(text_encoder, ours.text_encoder),
        tokenizer=ours.tokenizer,
        unet=same(unet, ours.unet),
        scheduler=diffusers.DDIMScheduler(**NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def draw(pipeline: Any, steps: int, size: int) -> tuple[float, Tensor]:
    """Seconds for one picture, and the picture as ``(1, 3, size, size)``."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    started = time.perf_counter()
    picture = pipeline(
        PROMPT,
        height=size,
        width=size,
        num_inference_steps=steps,
        generator=generator,
        output_type="pt",
        return_dict=False,
    )[0]
    return time.perf_counter() - started, picture


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_args()

    ours = our_pipeline(getattr(torch, arguments.dtype))
    contenders: dict[str, Callable[[], tuple[float, Tensor]]] = {}
    for name, pipeline in (("sfumato", ours), ("diffusers", their_pipeline(ours))):
        contenders[name] = lambda p=pipeline: draw(p, arguments.steps, arguments.size)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    pictures: dict[str, Tensor] = {}
    for _ in range(arguments.rounds):
        for name, contender in contenders.items():
            taken, pictures[name] = contender()
            seconds[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    apart = (pictures["sfumato"].float() - pictures["diffusers"].float()).abs().max().item()
    ratio = medians["diffusers"] / medians["sfumato"]
    if arguments.json:
        print(json.dumps({"seconds": seconds, "ratio": ratio, "largest_difference": apart}))
        return
    print(f"{arguments.size}x{arguments.size}, {arguments.steps} DDIM steps, {arguments.dtype}")
    for name, median in medians.items():
        print(f"{name:10} {median:8.2f} s   ({', '.join(f'{s:.2f}' for s in seconds[name])})")
    print(f"diffusers / sfumato: {ratio:.2f}; largest difference of a pixel: {apart:.1e} of 1")


if __name__ == "__main__":
    main()
