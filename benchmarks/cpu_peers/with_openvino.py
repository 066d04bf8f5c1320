"""OpenVINO with a network converted from diffusers, as its users do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_peers.job import Job, Runner, Sample, Shape

#: How the inputs are named in files for optimum and openvino-genai.
FOLDERS = {"unet": "unet", "vae": "vae_decoder", "text": "text_encoder"}
#: The picture that converters are shown; shapes stay dynamic.
EXAMPLE = Shape(size=256)
#: Calls that ranges of activations are taken from. The weights are random, and so are the inputs.
CALIBRATION = 2


def model_file(job: Job, quantized: bool = False) -> Path:
    """Where the converted network lies."""
    name = "openvino_int8.xml" if quantized else "openvino_model.xml"
    return job.cache / "openvino" / FOLDERS[job.part] / name


def prepare(job: Job, hint: str, quantized: bool = False) -> None:
    """Convert, and quantise if asked for, unless that was done before."""
    convert(job)
    if quantized and not model_file(job, quantized=True).exists():
        quantize(job)


def convert(job: Job) -> None:
    """Trace the network with torch and store it in float32."""
    import openvino as ov
    import torch

    from benchmarks.cpu_peers.with_diffusers import network

    path = model_file(job)
    if path.exists():
        return
    example = {name: torch.from_numpy(array) for name, array in job.inputs(EXAMPLE).items()}
    with torch.no_grad():
        model = ov.convert_model(network(job), example_input=example)
    shapes = [dynamic(array.shape) for array in job.inputs(EXAMPLE).values()]
    for port, name, shape in zip(model.inputs, example, shapes, strict=True):
        port.get_node().set_partial_shape(ov.PartialShape(shape))
        port.set_names({name})
    output = {"unet": "out_sample", "vae": "sample", "text": "last_hidden_state"}[job.part]
    model.outputs[0].set_names({output})
    model.validate_nodes_and_infer_types()
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, path, compress_to_fp16=False)


def dynamic(shape: tuple[int, ...]) -> list[int]:
    """A shape whose rows, height and width are open; channels and tokens are not."""
    if len(shape) == 4:
        return [-1, shape[1], -1, -1]
    return [-1, *shape[1:]]


def quantize(job: Job) -> None:
    """Weights and activations in int8, by nncf, with its scheme for transformers."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(model_file(job))
    data = nncf.Dataset([job.inputs(EXAMPLE)] * CALIBRATION)
    made = nncf.quantize(
        model, data, subset_size=CALIBRATION, model_type=nncf.ModelType.TRANSFORMER
    )
    ov.save_model(made, model_file(job, quantized=True), compress_to_fp16=False)


def load(job: Job, hint: str, quantized: bool = False) -> Runner:
    """A runner that compiles for each shape when it is first asked for it."""
    import openvino as ov

    core = ov.Core()
    path = model_file(job, quantized)
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": job.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled: dict[Shape, Any] = {}
    model = core.read_model(path)
    # Who converts elsewhere may give the time no axis.
    numbers = {
        port.any_name
        for port in model.inputs
        if port.partial_shape.rank.is_static and port.partial_shape.rank.get_length() == 0
    }

    def call(shape: Shape) -> Sample:
        feed = {k: v[0] if k in numbers else v for k, v in job.inputs(shape).items()}
        if shape not in compiled:
            compiled.clear()
            model.reshape({name: np.shape(array) for name, array in feed.items()})
            compiled[shape] = core.compile_model(model, "CPU", settings).create_infer_request()
        result = compiled[shape].infer(feed, share_inputs=True)
        return Sample(np.array(result[0], np.float32))

    return call
