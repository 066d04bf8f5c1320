"""``sfumato PROMPT``: draw pictures and print their paths."""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato import __version__
from sfumato.checkpoints.files import shown
from sfumato.cli import COMMANDS, console
from sfumato.cli.conditions import Boxes, ClassLabel, SemanticMap, read_conditions
from sfumato.cli.previewing import PreviewInterval, PreviewPath, read_preview
from sfumato.cli.saving import AttentionSlicing, LowMemory, Quantization, Saving, VaeTiling
from sfumato.cli.steering import (
    CfgPlusPlus,
    Interval,
    MimicScale,
    Pag,
    Sag,
    read_steering,
)
from sfumato.errors import InputError

if TYPE_CHECKING:  # imported where it is used, so that --help is instant
    from sfumato.cli.request import Request

_ABOUT_COMMANDS = "\n".join(f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items())
_EPILOG = f"""\
Names may be written with _ for -, and set in the environment: SFUMATO_STEPS=30.
With --debug an error shows where it happened.

\b
Commands, each with its own --help:
{_ABOUT_COMMANDS}
"""

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "SFUMATO",
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sfumato {__version__}")
        raise typer.Exit


# The options, under stable-diffusion.cpp's names first, then A1111's and diffusers'.

_Option = partial(typer.Option, show_envvar=False)
_Text = partial(_Option, metavar="TEXT")
_Name = partial(_Option, metavar="NAME")
_Count = partial(_Option, metavar="N")
_Number = partial(_Option, metavar="X")

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="What to draw; - reads a prompt from every line."),
]
Prompt = Annotated[str | None, _Text("-p", "--prompt", help="What to draw, as an option.")]
FromFile = Annotated[
    Path | None, _Option("--from-file", metavar="TEXT", help="A prompt in every line of a file.")
]
NegativePrompt = Annotated[
    str | None, _Text("-n", "--negative-prompt", help="What to steer away from.")
]
PromptSyntax = Annotated[
    str | None,
    _Name("--prompt-syntax", help="a1111, a1111-no-norm, comfyui or literal. [default: a1111]"),
]
Lora = Annotated[
    list[str] | None,
    _Option("--lora", metavar="NAME[:X]", help="LoRA and its strength; can be given repeatedly."),
]
LoraDir = Annotated[
    Path | None,
    _Option(
        *("--lora-dir", "--lora-model-dir"), metavar="FOLDER", help="Of LoRAs, by their file names."
    ),
]
Model = Annotated[
    str | None,
    _Option("-m", "--model", metavar="MODEL", help="Folder, file, hub name. [default: embedded]"),
]
Vae = Annotated[
    Path | None,
    _Option("--vae", metavar="FILE", help="Autoencoder in place of the model's: file or folder."),
]
Width = Annotated[int | None, _Count("-W", "--width", help="In pixels.")]
Height = Annotated[int | None, _Count("-H", "--height", help="In pixels.")]
Size = Annotated[str | None, _Option("--size", metavar="WxH", help="Both, as 512x768.")]
Steps = Annotated[
    int | None,
    _Count("--steps", "--num-inference-steps", min=1, max=1000, help="Denoising steps."),
]
QualityName = Annotated[
    str | None, _Name("--quality", help="fast, balanced or best: sampler and steps.")
]
CfgScale = Annotated[
    float | None,
    _Number(
        *("--cfg-scale", "--guidance-scale"),
        min=-1000,
        max=1000,
        help="How strictly to follow the prompt; 1 or less is not at all.",
    ),
]
SamplingMethod = Annotated[
    str | None, _Name("--sampling-method", "--sampler", help="See `sfumato samplers`.")
]
Scheduler = Annotated[
    str | None,
    _Name("--scheduler", "--schedule-type", help="Spread of the steps, such as karras."),
]
Seed = Annotated[
    int | None,
    _Count("-s", "--seed", min=-1, max=2**64 - 1, help="A random one if not given, or -1."),
]
VariationSeed = Annotated[
    int | None,
    _Count(*("--variation-seed", "--subseed"), min=-1, max=2**64 - 1, help="Seed to go towards."),
]
VariationStrength = Annotated[
    float | None,
    _Number(
        *("--variation-strength", "--subseed-strength"),
        min=0,
        max=1,
        help="How far; of several pictures the variation seeds count up then.",
    ),
]
SeedResizeFrom = Annotated[
    str | None,
    _Option("--seed-resize-from", metavar="WxH", help="Keep the noise of a picture of this size."),
]
Rng = Annotated[
    str | None, _Name("--rng", help="Noise as drawn by cpu, nvidia or comfyui. [default: cpu]")
]
Ensd = Annotated[
    int | None,
    _Count(
        *("--ensd", "--eta-noise-seed-delta"),
        min=0,
        max=2**63,
        help="Added to the seed for noise that samplers add.",
    ),
]
BatchCount = Annotated[
    int,
    _Count(
        *("-b", "--batch-count", "--num-images-per-prompt"),
        min=1,
        max=100_000,
        help="Pictures, with seeds counting up.",
    ),
]
Output = Annotated[
    str | None,
    _Name("-o", "--output", help="File, folder or pattern with %03d or {seed}; never overwrites."),
]
ClipSkip = Annotated[
    int | None,
    _Count("--clip-skip", min=1, max=100, help="1 is the text encoder's last layer."),
]
GuidanceRescale = Annotated[
    float | None,
    _Number("--guidance-rescale", min=0, max=1, help="Against overexposure by guidance."),
]
Eta = Annotated[float | None, _Number("--eta", min=0, max=1, help="DDIM's share of fresh noise.")]
InitImage = Annotated[
    Path | None,
    _Option("-i", "--init-img", "--init-image", metavar="PICTURE", help="Picture to begin from."),
]
Strength = Annotated[
    float | None,
    _Number(
        "--strength", min=0, max=1, help="How much to draw anew. [default: 0.75; all of masks]"
    ),
]
Mask = Annotated[
    Path | None, _Option("--mask", metavar="PICTURE", help="White where to draw into --init-img.")
]
Outpaint = Annotated[
    str | None,
    _Option("--outpaint", metavar="PIXELS", help="Room to add around --init-img: 64, or 0,0,64,0."),
]
Hires = Annotated[
    float | None,
    _Number("--hires", min=1, max=8, help="Draw smaller by this factor first, then in full size."),
]
HiresUpscaler = Annotated[
    str | None,
    _Name("--hires-upscaler", help="latent, latent-nearest, latent-bicubic, lanczos, bicubic, ..."),
]
HiresSteps = Annotated[
    int | None, _Count("--hires-steps", min=1, max=1000, help="Of the second pass.")
]
Tiling = Annotated[
    str | None, _Name("--tiling", help="Draw what joins without a seam: both, x or y.")
]
ControlNet = Annotated[
    str | None, _Option("--controlnet", metavar="MODEL", help="ControlNet: folder or file.")
]
ControlImage = Annotated[
    Path | None, _Option("--control-image", metavar="PICTURE", help="What it is to go by.")
]
ControlStrength = Annotated[
    float | None, _Number("--control-strength", min=-100, max=100, help="How strongly it acts.")
]
Replay = Annotated[
    Path | None,
    _Option(
        "--from",
        metavar="PICTURE",
        envvar="SFUMATO_FROM",
        help="Picture whose recipe to take; options change it.",
    ),
]
Device = Annotated[str, _Name("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
DType = Annotated[
    str | None, _Name("--dtype", help="auto, float32, bfloat16 or float16. [default: auto]")
]
BackendName = Annotated[
    str | None,
    _Name("--backend", help="auto, numpy, openvino, jax or torch: what computes."),
]
Threads = Annotated[int | None, _Count("-t", "--threads", min=1, max=1024, help="On the CPU.")]
Json = Annotated[
    bool, _Option("--json", envvar="SFUMATO_JSON", help="Print path and recipe as a line of JSON.")
]
Quiet = Annotated[bool, _Option("-q", "--quiet", help="Say nothing on stderr but errors.")]
Verbose = Annotated[bool, _Option("-v", "--verbose", help="Say more on stderr.")]
Version = Annotated[
    bool,
    _Option(
        "--version",
        is_eager=True,
        allow_from_autoenv=False,
        callback=_print_version,
        help="Print the version.",
    ),
]


@app.command(epilog=_EPILOG)
def generate(
    words: Words = None,
    prompt: Prompt = None,
    from_file: FromFile = None,
    negative_prompt: NegativePrompt = None,
    prompt_syntax: PromptSyntax = None,
    lora: Lora = None,
    lora_dir: LoraDir = None,
    model: Model = None,
    vae: Vae = None,
    width: Width = None,
    height: Height = None,
    size: Size = None,
    steps: Steps = None,
    quality: QualityName = None,
    cfg_scale: CfgScale = None,
    sampling_method: SamplingMethod = None,
    scheduler: Scheduler = None,
    seed: Seed = None,
    variation_seed: VariationSeed = None,
    variation_strength: VariationStrength = None,
    seed_resize_from: SeedResizeFrom = None,
    rng: Rng = None,
    ensd: Ensd = None,
    batch_count: BatchCount = 1,
    output: Output = None,
    clip_skip: ClipSkip = None,
    guidance_rescale: GuidanceRescale = None,
    guidance_interval: Interval = None,
    cfg_pp: CfgPlusPlus = None,
    pag: Pag = None,
    sag: Sag = None,
    mimic_scale: MimicScale = None,
    eta: Eta = None,
    init_image: InitImage = None,
    strength: Strength = None,
    mask: Mask = None,
    outpaint: Outpaint = None,
    hires: Hires = None,
    hires_upscaler: HiresUpscaler = None,
    hires_steps: HiresSteps = None,
    tiling: Tiling = None,
    controlnet: ControlNet = None,
    control_image: ControlImage = None,
    control_strength: ControlStrength = None,
    class_label: ClassLabel = None,
    semantic_map: SemanticMap = None,
    boxes: Boxes = None,
    replay: Replay = None,
    device: Device = "auto",
    dtype: DType = None,
    backend: BackendName = None,
    threads: Threads = None,
    vae_tiling: VaeTiling = False,
    attention_slicing: AttentionSlicing = False,
    low_memory: LowMemory = False,
    quantization: Quantization = None,
    preview: PreviewPath = None,
    preview_interval: PreviewInterval = 1,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Draw a picture from a sentence and print its path.

    sfumato "a red apple"
    """
    from sfumato.cli.backends import check_backend
    from sfumato.cli.picture_options import read_pictures
    from sfumato.cli.pictures import check_output
    from sfumato.cli.request import build_request, read_size

    console.be_quiet(quiet)
    console.show_log(logging.INFO if verbose else logging.WARNING)
    if size is not None:
        if width is not None or height is not None:
            raise InputError("Give either --size or -W and -H.")
        width, height = read_size(size)
    request = build_request(
        {
            "negative_prompt": negative_prompt,
            "width": width,
            "height": height,
            "steps": steps,
            "cfg_scale": cfg_scale,
            "sampler": sampling_method,
            "schedule": scheduler,
            "seed": seed,
            "variation_seed": variation_seed,
            "variation_strength": variation_strength,
            "seed_resize_from": seed_resize_from,
            "rng": rng,
            "eta_noise_seed_delta": ensd,
            "vae": None if vae is None else str(vae),
            "prompt_syntax": prompt_syntax,
            "clip_skip": clip_skip,
            "guidance_rescale": guidance_rescale,
            "eta": eta,
            "dtype": dtype,
            **read_steering(
                {
                    "guidance_interval": guidance_interval,
                    "cfg_pp": cfg_pp,
                    "pag": pag,
                    "sag": sag,
                    "mimic_scale": mimic_scale,
                }
            ),
            **read_pictures(
                {
                    "init_image": init_image,
                    "strength": strength,
                    "mask": mask,
                    "outpaint": outpaint,
                    "hires_scale": hires,
                    "hires_upscaler": hires_upscaler,
                    "hires_steps": hires_steps,
                    "tiling": tiling,
                    "controlnet": controlnet,
                    "control_image": control_image,
                    "control_strength": control_strength,
                }
            ),
            **Saving(
                vae_tiling=vae_tiling,
                attention_slicing=attention_slicing,
                low_memory=low_memory,
                quantization=quantization,
            ).fields(),
            **read_conditions(
                {"class_label": class_label, "semantic_map": semantic_map, "boxes": boxes}
            ),
        },
        prompts=_prompts(words or [], prompt, from_file),
        loras=lora or [],
        lora_dir=lora_dir,
        model=model,
        replay=replay,
        count=batch_count,
        device=device,
        threads=threads,
        backend=check_backend(backend),
        preview=read_preview(preview, preview_interval),
        quality=quality,
    )
    check_output(output)
    _draw_and_save(request, output, as_json)


def _prompts(words: list[str], option: str | None, file: Path | None) -> tuple[str, ...]:
    """The texts to draw; none when a picture's recipe is to say."""
    if len(words) > 1:
        raise InputError(
            f"Unexpected words after {words[0][:60]!r}.",
            hint=f'Put a prompt of several words in quotes: sfumato "{" ".join(words)[:80]}"',
        )
    if words and option is not None:
        raise InputError("The prompt is given twice, as an argument and with --prompt.")
    if file is not None:
        if words or option is not None:
            raise InputError("Give either a prompt or --from-file.")
        prompts = _lines(file.read_text("utf-8", "replace"), f"in {shown(file)}")
    elif words == ["-"]:
        prompts = _lines("" if sys.stdin is None else sys.stdin.read(), "on stdin")
    else:
        prompts = tuple(words) if option is None else (option,)
    # Bytes that are no text arrive as lone surrogates, which no tokenizer takes.
    return tuple(text.encode("utf-8", "replace").decode("utf-8") for text in prompts)


def _lines(text: str, where: str) -> tuple[str, ...]:
    prompts = tuple(line for line in text.splitlines() if line.strip())
    if not prompts:
        raise InputError(f"There is no prompt {where}.")
    return prompts


def _draw_and_save(request: Request, output: str | None, as_json: bool) -> None:
    from sfumato.checkpoints.picture_files import encode_picture
    from sfumato.cli.backends import draw
    from sfumato.cli.pictures import suffix_of, write_new

    suffix = suffix_of(output)
    for drawn in draw(request):
        recipe = drawn.recipe
        data = encode_picture(drawn.image, recipe, suffix)
        path = write_new(output, recipe.seed or 0, data)
        console.note(
            f"seed {recipe.seed}, {recipe.steps} steps of {recipe.sampler}"
            f" ({recipe.schedule}), {recipe.width}x{recipe.height}, {drawn.seconds:.1f} s"
        )
        if as_json:
            line = {"path": str(path), "seconds": round(drawn.seconds, 3), **recipe.to_dict()}
            print(json.dumps(line), flush=True)
        else:
            print(path, flush=True)
