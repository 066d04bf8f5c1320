"""``sfumato train``: make a model of your own from a folder of pictures with captions."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Train a model of your own on a folder of pictures with captions (metadata.jsonl).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Data = Annotated[Path, typer.Argument(help="Folder with metadata.jsonl and the pictures it lists.")]
Output = Annotated[
    Path, typer.Option("-o", "--output", help="Folder of the run; one that exists is resumed.")
]
Steps = Annotated[int, typer.Option(help="Steps in all; a finished run can be prolonged.")]
BatchSize = Annotated[int, typer.Option(help="Pictures per step.")]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate of AdamW.")]
WarmupSteps = Annotated[int, typer.Option(help="Steps in which the rate rises to its peak.")]
DecayShare = Annotated[
    float, typer.Option(help="Last share of the steps, in which the rate falls to zero.")
]
EmaDecay = Annotated[float, typer.Option(help="Decay of the averaged weights that are saved.")]
ImageSize = Annotated[int, typer.Option(help="Side of the pictures in pixels.")]
CaptionDropout = Annotated[float, typer.Option(help="Share of empty captions.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, order, noise and crops.")]
DType = Annotated[str, typer.Option(help="Arithmetic: bfloat16 or float32.")]
SampleEvery = Annotated[int, typer.Option(help="Steps between sample sheets; 0 makes none.")]
CheckpointEvery = Annotated[int, typer.Option(help="Steps between checkpoints.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")]
Architecture = Annotated[
    Path | None,
    typer.Option(help="Folder with vae.json, unet.json, text_encoder.json, scheduler.json."),
]


class FirstStage(StrEnum):
    """Kinds of first stages."""

    KL = "kl"
    VQ = "vq"


@app.command("autoencoder")
def autoencoder(
    data: Data,
    output: Output,
    first_stage: Annotated[
        FirstStage, typer.Option(help="kl: Gaussian latents; vq: those of a codebook.")
    ] = FirstStage.KL,
    architecture: Architecture = None,
    init: Annotated[
        Path | None, typer.Option(help="Autoencoder folder to start from instead of noise.")
    ] = None,
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder", help="Improve the decoder alone.")
    ] = False,
    image_size: ImageSize = 128,
    crop_size: Annotated[int, typer.Option(help="Side of the squares trained on.")] = 64,
    edge_weight: Annotated[float, typer.Option(help="Weight of the edge loss.")] = 1.0,
    colour_weight: Annotated[float, typer.Option(help="Weight of the colour loss.")] = 1.0,
    anchor_weight: Annotated[
        float, typer.Option(help="Weight of the term that ties two latent channels to colours.")
    ] = 0.1,
    kl_weight: Annotated[float, typer.Option(help="kl: weight of the KL loss.")] = 1e-3,
    codebook_size: Annotated[int, typer.Option(help="vq: vectors in the codebook.")] = 1024,
    commit_weight: Annotated[
        float, typer.Option(help="vq: weight of the loss between latents and codebook.")
    ] = 1.0,
    steps: Steps = 10_000,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 1e-3,
    warmup_steps: WarmupSteps = 200,
    decay_share: DecayShare = 0.2,
    ema_decay: EmaDecay = 0.999,
    seed: Seed = 0,
    dtype: DType = "bfloat16",
    sample_every: SampleEvery = 500,
    checkpoint_every: CheckpointEvery = 500,
    threads: Threads = None,
) -> None:
    """Train the first stage: pictures to latents and back."""
    from sfumato.training.autoencoder import (
        AutoencoderTraining,
        CodebookTraining,
        train_autoencoder,
    )

    shared: dict[str, Any] = {
        **_common(locals()),
        "image_size": image_size,
        "crop_size": crop_size,
        "edge_weight": edge_weight,
        "colour_weight": colour_weight,
        "anchor_weight": anchor_weight,
        "freeze_encoder": freeze_encoder,
    }
    if first_stage is FirstStage.KL:
        config = AutoencoderTraining(**shared, kl_weight=kl_weight)
    else:
        config = CodebookTraining(
            **shared, codebook_size=codebook_size, commit_weight=commit_weight
        )
    folder = train_autoencoder(
        data, output, config, architecture=architecture, init=init, sample_every=sample_every
    )
    typer.echo(folder)


@app.command("text-encoder")
def text_encoder(
    data: Data,
    output: Output,
    autoencoder: Annotated[Path, typer.Option(help="Trained autoencoder's folder.")],
    architecture: Architecture = None,
    init: Annotated[
        Path | None, typer.Option(help="Text encoder folder to start from instead of noise.")
    ] = None,
    image_size: ImageSize = 128,
    caption_dropout: CaptionDropout = 0.1,
    steps: Steps = 3_000,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 1e-3,
    warmup_steps: WarmupSteps = 200,
    decay_share: DecayShare = 0.2,
    ema_decay: EmaDecay = 0.999,
    seed: Seed = 0,
    dtype: DType = "bfloat16",
    sample_every: SampleEvery = 500,
    checkpoint_every: CheckpointEvery = 500,
    threads: Threads = None,
) -> None:
    """Train a text encoder by itself on the first stage's latents, to start the second from."""
    from sfumato.training.captions import CaptionedTraining
    from sfumato.training.text_encoder import train_text_encoder

    config = CaptionedTraining(**_common(locals()), caption_dropout=caption_dropout)
    folder = train_text_encoder(
        data,
        output,
        config,
        autoencoder=autoencoder,
        architecture=architecture,
        init=init,
        image_size=image_size,
        sample_every=sample_every,
    )
    typer.echo(folder)


@app.command("text-to-image")
def text_to_image(
    data: Data,
    output: Output,
    autoencoder: Annotated[Path | None, typer.Option(help="Trained autoencoder's folder.")] = None,
    architecture: Architecture = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="Folder of a text encoder trained by itself.")
    ] = None,
    timestep_shift: Annotated[
        float, typer.Option(help="Above 1, high noise levels are trained on more often.")
    ] = 1.0,
    freeze_text_encoder: Annotated[
        bool, typer.Option("--freeze-text-encoder", help="Train the UNet alone.")
    ] = False,
    init: Annotated[
        Path | None, typer.Option(help="Model folder to start from instead of noise.")
    ] = None,
    image_size: ImageSize = 128,
    prediction_type: Annotated[
        str, typer.Option(help="epsilon, v_prediction or sample.")
    ] = "v_prediction",
    snr_gamma: Annotated[
        float, typer.Option(help="Cap of the min-SNR weighting; 0 for no weighting.")
    ] = 5.0,
    caption_dropout: CaptionDropout = 0.1,
    steps: Steps = 20_000,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 1e-3,
    warmup_steps: WarmupSteps = 300,
    decay_share: DecayShare = 0.2,
    ema_decay: EmaDecay = 0.999,
    seed: Seed = 0,
    dtype: DType = "bfloat16",
    sample_every: SampleEvery = 500,
    checkpoint_every: CheckpointEvery = 500,
    threads: Threads = None,
) -> None:
    """Train the second stage: a text encoder and a UNet on the first stage's latents."""
    from sfumato.training.text_to_image import TextToImageTraining, train_text_to_image

    config = TextToImageTraining(
        **_common(locals()),
        prediction_type=prediction_type,
        snr_gamma=snr_gamma or None,
        timestep_shift=timestep_shift,
        freeze_text_encoder=freeze_text_encoder,
        caption_dropout=caption_dropout,
    )
    folder = train_text_to_image(
        data,
        output,
        config,
        autoencoder=autoencoder,
        architecture=architecture,
        text_encoder=text_encoder,
        init=init,
        image_size=image_size,
        sample_every=sample_every,
    )
    typer.echo(folder)


@app.command("unconditional")
def unconditional(
    data: Annotated[Path, typer.Argument(help="Folder of pictures; no captions are needed.")],
    output: Output,
    autoencoder: Annotated[
        Path | None, typer.Option(help="Trained autoencoder's folder, KL or VQ.")
    ] = None,
    architecture: Annotated[
        Path | None, typer.Option(help="Folder with unconditional.json and scheduler.json.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Model folder to start from instead of noise.")
    ] = None,
    image_size: ImageSize = 128,
    prediction_type: Annotated[
        str, typer.Option(help="epsilon, v_prediction or sample.")
    ] = "v_prediction",
    snr_gamma: Annotated[
        float, typer.Option(help="Cap of the min-SNR weighting; 0 for no weighting.")
    ] = 5.0,
    timestep_shift: Annotated[
        float, typer.Option(help="Above 1, high noise levels are trained on more often.")
    ] = 1.0,
    steps: Steps = 20_000,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 1e-3,
    warmup_steps: WarmupSteps = 300,
    decay_share: DecayShare = 0.2,
    ema_decay: EmaDecay = 0.999,
    seed: Seed = 0,
    dtype: DType = "bfloat16",
    sample_every: SampleEvery = 500,
    checkpoint_every: CheckpointEvery = 500,
    threads: Threads = None,
) -> None:
    """Train a second stage that draws pictures like those of a folder, without any text."""
    from sfumato.training.denoising import DenoisingTraining
    from sfumato.training.unconditional import train_unconditional

    config = DenoisingTraining(
        **_common(locals()),
        prediction_type=prediction_type,
        snr_gamma=snr_gamma or None,
        timestep_shift=timestep_shift,
    )
    folder = train_unconditional(
        data,
        output,
        config,
        autoencoder=autoencoder,
        architecture=architecture,
        init=init,
        image_size=image_size,
        sample_every=sample_every,
    )
    typer.echo(folder)


@app.command("classes")
def classes(
    data: Annotated[Path, typer.Argument(help="Folder with a folder of pictures for each class.")],
    output: Output,
    autoencoder: Annotated[
        Path | None, typer.Option(help="Trained autoencoder's folder, KL or VQ.")
    ] = None,
    architecture: Annotated[
        Path | None, typer.Option(help="Folder with unet.json and scheduler.json.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Model folder to start from instead of noise.")
    ] = None,
    image_size: ImageSize = 128,
    prediction_type: Annotated[
        str, typer.Option(help="epsilon, v_prediction or sample.")
    ] = "v_prediction",
    snr_gamma: Annotated[
        float, typer.Option(help="Cap of the min-SNR weighting; 0 for no weighting.")
    ] = 5.0,
    timestep_shift: Annotated[
        float, typer.Option(help="Above 1, high noise levels are trained on more often.")
    ] = 1.0,
    class_dropout: Annotated[
        float, typer.Option(help="Share of pictures shown as of no class, for guidance.")
    ] = 0.1,
    steps: Steps = 20_000,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 1e-3,
    warmup_steps: WarmupSteps = 300,
    decay_share: DecayShare = 0.2,
    ema_decay: EmaDecay = 0.999,
    seed: Seed = 0,
    dtype: DType = "bfloat16",
    sample_every: SampleEvery = 500,
    checkpoint_every: CheckpointEvery = 500,
    threads: Threads = None,
) -> None:
    """Train a second stage that draws pictures of classes, known by number or name."""
    from sfumato.training.classes import ClassTraining, train_classes

    config = ClassTraining(
        **_common(locals()),
        prediction_type=prediction_type,
        snr_gamma=snr_gamma or None,
        timestep_shift=timestep_shift,
        class_dropout=class_dropout,
    )
    folder = train_classes(
        data,
        output,
        config,
        autoencoder=autoencoder,
        architecture=architecture,
        init=init,
        image_size=image_size,
        sample_every=sample_every,
    )
    typer.echo(folder)


def _common(given: dict[str, Any]) -> dict[str, Any]:
    """The settings that both recipes share, from a command's arguments."""
    import torch

    from sfumato.training.optimizer import OptimizerConfig

    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    rates = ("learning_rate", "warmup_steps", "decay_share", "ema_decay")
    shared = ("steps", "batch_size", "seed", "dtype", "checkpoint_every")
    optimizer = OptimizerConfig(**{name: given[name] for name in rates})
    return {**{name: given[name] for name in shared}, "optimizer": optimizer}
