"""ONNX Runtime with a network exported from diffusers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.cpu_peers.job import Job, Runner, Sample, Shape


def model_file(job: Job) -> Path:
    """Where the exported network lies."""
    return job.cache / "onnx" / job.part / "model.onnx"


def prepare(job: Job) -> None:
    """Export in float32 with open rows, height and width, unless that was done before."""
    import torch

    from benchmarks.cpu_peers.with_diffusers import network

    path = model_file(job)
    if path.exists():
        return
    inputs = job.inputs(Shape(size=256))
    axes = {4: {0: "rows", 2: "height", 3: "width"}, 3: {0: "rows"}, 2: {0: "rows"}, 1: {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name("unfinished.onnx")
    torch.onnx.export(
        network(job),
        tuple(torch.from_numpy(array) for array in inputs.values()),
        part,
        input_names=list(inputs),
        output_names=["output"],
        dynamic_axes={name: axes[array.ndim] for name, array in inputs.items()},
        opset_version=17,
        dynamo=False,
    )
    part.rename(path)


def load(job: Job) -> Runner:
    """A session with all of the runtime's optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(
        model_file(job), options, providers=["CPUExecutionProvider"]
    )

    def call(shape: Shape) -> Sample:
        output = session.run(None, job.inputs(shape))[0]
        return Sample(np.asarray(output, np.float32))

    return call
