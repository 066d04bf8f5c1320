"""What diffusers' own Flax pipeline computes; run by ``upstream.py`` in an environment of its time.

    python upstream_reference.py FOLDER INPUTS.npz OUTPUTS.npz

Needs diffusers, transformers with Flax's CLIP, flax and jax of versions that fit each other; no
torch. Knows nothing of sfumato, whose folder it reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from diffusers.models import attention_flax
from diffusers.models.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax
from diffusers.pipelines.stable_diffusion import pipeline_flax_stable_diffusion
from safetensors.numpy import load_file


def network(folder: Path, model_class: Any) -> tuple[Any, Any]:
    """A network of diffusers and its parameters."""
    config = json.loads((folder / "config.json").read_text())
    model = model_class.from_config(config)
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    fakes = {name: SimpleNamespace(numpy=lambda a=array: a) for name, array in tensors.items()}
    return model, convert_pytorch_state_dict_to_flax(fakes, model)


def text_encoder(folder: Path) -> tuple[Any, Any]:
    """transformers' text encoder and its parameters."""
    config = transformers.CLIPTextConfig.from_pretrained(folder)
    model = transformers.FlaxCLIPTextModel(config, _do_init=False)
    flat = {}
    for name, array in load_file(folder / "model.safetensors").items():
        *place, kind = name.split(".")
        if kind == "weight":
            kind = "embedding" if "embedding" in place[-1] else "kernel"
            kind = "scale" if "norm" in place[-1] else kind
        flat[(*place, kind)] = array.T if kind == "kernel" else array
    flat = {place: array for place, array in flat.items() if place[-1] != "position_ids"}
    return model, flax.traverse_util.unflatten_dict(flat)


def as_in_torch() -> None:
    """Compute GEGLU and the norm before attention as torch does: GELU exactly, 1e-6."""

    class Layers:
        def __getattr__(self, name: str) -> Any:
            return getattr(nn, name)

        def gelu(self, x: Any) -> Any:
            return nn.gelu(x, approximate=False)

        def GroupNorm(self, num_groups: int, epsilon: float) -> Any:
            return nn.GroupNorm(num_groups=num_groups, epsilon=1e-6)

    attention_flax.nn = Layers()


def scheduler_of(name: str, folder: Path) -> Any:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return getattr(diffusers, name).from_config(config)


def networks(parts: Any, given: Any) -> dict[str, Any]:
    """Each network's answer."""
    (text, text_params), (unet, unet_params), (vae, vae_params) = parts
    unet_out = unet.apply(
        {"params": unet_params}, given["sample"], given["timesteps"], given["context"]
    )
    decoded = vae.apply({"params": vae_params}, given["sample"], method=vae.decode)
    encoded = vae.apply({"params": vae_params}, given["pictures"], method=vae.encode)
    mean = np.asarray(encoded.latent_dist.mean)  # channels last
    return {
        "text": text(given["ids"], params=text_params)[0],
        "unet": unet_out.sample,
        "decode": decoded.sample,
        "encode": mean.transpose(0, 3, 1, 2),
    }


def samplers(names: list[str], folder: Path, given: Any) -> dict[str, Any]:
    """The samples of each scheduler, step by step, for outputs that are given."""
    found = {}
    for name in names:
        scheduler = scheduler_of(name, folder)
        state = scheduler.create_state()
        x = given["sample"]
        state = scheduler.set_timesteps(state, int(given["steps"]), shape=x.shape)
        x = x * state.init_noise_sigma
        samples = []
        for step, t in enumerate(np.asarray(state.timesteps)):
            scheduler.scale_model_input(state, x, t)
            x, state = scheduler.step(state, given["outputs"][step], t, x).to_tuple()
            samples.append(np.asarray(x))
        found[f"sampler {name}"] = np.stack(samples)
    return found


def pictures(names: list[str], folder: Path, parts: Any, given: Any) -> dict[str, Any]:
    """What the pipeline draws with each scheduler, one picture without jit."""
    (text, text_params), (unet, unet_params), (vae, vae_params) = parts
    pipeline_flax_stable_diffusion.DEBUG = True  # a loop in Python, which compiles less
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    found = {}
    for name in names:
        scheduler = scheduler_of(name, folder)
        pipeline = diffusers.FlaxStableDiffusionPipeline(
            vae, text, tokenizer, unet, scheduler, None, None
        )
        size = unet.config.sample_size * pipeline.vae_scale_factor
        params = {"text_encoder": text_params, "unet": unet_params, "vae": vae_params}
        params["scheduler"] = scheduler.create_state()
        images = pipeline._generate(
            given["ids"][:1], params, jax.random.PRNGKey(0), int(given["steps"]), size, size,
            7.5, jnp.asarray(given["sample"][:1]),
        )  # fmt: skip
        found[f"picture {name}"] = np.asarray(images)
    return found


def main(folder: Path, inputs: Path, outputs: Path) -> None:
    arrays = dict(np.load(inputs))
    names = [str(name) for name in arrays.pop("schedulers")]
    given = {name: jnp.asarray(array) for name, array in arrays.items()}
    parts = (
        text_encoder(folder / "text_encoder"),
        network(folder / "unet", diffusers.FlaxUNet2DConditionModel),
        network(folder / "vae", diffusers.FlaxAutoencoderKL),
    )
    found = samplers(names, folder, given)
    for form in ("as it was", "as in torch"):
        if form == "as in torch":
            as_in_torch()
        answers = networks(parts, given) | pictures(names, folder, parts, given)
        found |= {f"{name}, {form}": np.asarray(array) for name, array in answers.items()}
    versions = [f"{m.__name__} {m.__version__}" for m in (diffusers, transformers, flax, jax)]
    np.savez(outputs, versions=np.array(versions), **found)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
