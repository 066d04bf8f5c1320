"""openvino-genai's own pipeline, on networks converted for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_peers import with_openvino
from benchmarks.cpu_peers.job import PROMPT, Job, Runner, Shape
from benchmarks.cpu_peers.watched import as_array, watched

#: Seeds the noise; the pictures are not compared with others', whose generators differ.
SEED = 1


def folder(job: Job) -> Path:
    """The model in the layout that it reads."""
    return job.cache / "openvino"


def prepare(job: Job) -> None:
    """Convert all networks and the tokenizer, and copy the configurations beside them."""
    for part, name in with_openvino.FOLDERS.items():
        with_openvino.convert(replace(job, part=part))
        source = job.model / ("vae" if part == "vae" else name) / "config.json"
        shutil.copy(source, folder(job) / name)
    convert_tokenizer(job)
    (folder(job) / "scheduler").mkdir(exist_ok=True)
    settings = job.model / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(settings.read_text("utf-8")) | {"_class_name": "PNDMScheduler"}
    (folder(job) / "scheduler" / settings.name).write_text(json.dumps(scheduler), "utf-8")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder(job) / "model_index.json").write_text(json.dumps(index), "utf-8")


def convert_tokenizer(job: Job) -> None:
    """The tokenizer as a graph of OpenVINO's."""
    import openvino as ov
    import openvino_tokenizers
    from transformers import CLIPTokenizerFast

    place = folder(job) / "tokenizer"
    if (place / "openvino_tokenizer.xml").exists():
        return
    tokenizer = CLIPTokenizerFast.from_pretrained(job.model / "tokenizer")
    made: Any = openvino_tokenizers.convert_tokenizer(tokenizer)
    place.mkdir(exist_ok=True)
    ov.save_model(made, place / "openvino_tokenizer.xml")


def load(job: Job) -> Runner:
    """The pipeline, with bfloat16 for a hint."""
    import openvino_genai

    pipe = openvino_genai.Text2ImagePipeline(
        str(folder(job)),
        "CPU",
        INFERENCE_PRECISION_HINT="bf16",
        INFERENCE_NUM_THREADS=job.threads,
    )

    def draw(shape: Shape, mark: Callable[[], None]) -> np.ndarray:
        def after_step(step: int, steps: int, latents: Any) -> bool:
            mark()
            return False

        made = pipe.generate(
            PROMPT,
            height=shape.size,
            width=shape.size,
            num_inference_steps=shape.steps,
            num_images_per_prompt=shape.batch,
            rng_seed=SEED,
            callback=after_step,
        )
        return as_array(made.data)

    return watched(draw, job.part)
