"""Put a trained model into the package: the last step of `README.md` in this folder.

    python recipes/package_model.py --model runs/emoji/model --out src/sfumato/assets/model

The folder gets the networks in bfloat16, ``generation.json`` (what the command uses when nothing is
asked for), the model card, and ``SHA256SUMS`` over all of it. ``--vae`` takes another autoencoder,
such as one whose decoder was trained further on the same latents.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from sfumato import AutoencoderKL, StableDiffusionPipeline
from sfumato.assets import write_manifest

CARD = Path(__file__).parent.parent / "src" / "sfumato" / "assets" / "MODEL_CARD.md"


def main() -> None:
    """Parse the arguments, package the model, print the folder and its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="pipeline folder of the run")
    parser.add_argument("--vae", type=Path, help="autoencoder folder to take instead")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; replaced")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg-scale", type=float, default=4.0)
    arguments = parser.parse_args()

    parts = {}
    if arguments.vae:
        parts["vae"] = AutoencoderKL.from_pretrained(arguments.vae, dtype=torch.bfloat16)
    pipeline = StableDiffusionPipeline.from_pretrained(
        arguments.model, dtype=torch.bfloat16, **parts
    )
    shutil.rmtree(arguments.out, ignore_errors=True)
    pipeline.save_pretrained(arguments.out)
    defaults = {"steps": arguments.steps, "cfg_scale": arguments.cfg_scale}
    (arguments.out / "generation.json").write_text(json.dumps(defaults, indent=2) + "\n")
    shutil.copy(CARD, arguments.out / "README.md")
    write_manifest(arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
