"""Recipe: the text encoder first, by itself, learning what a caption's picture looks like.

At the highest noise level a diffusion model sees nothing of the picture, and its best answer is the
mean of all pictures that the caption may stand for. That answer needs no UNet. So a small head
reads the encoder's hidden states the way a UNet does, by cross-attention from each place of the
latent, and the squared error to the latent teaches the encoder. A step costs a tenth of a UNet's;
the UNet that is trained afterwards finds in its context what is to be drawn where, and has to learn
only how to read it, which is the same for every word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.errors import ConfigError, DatasetError
from sfumato.models.autoencoder import AutoencoderKL
from sfumato.text.clip import CLIPTextModel
from sfumato.text.tokenizer import CLIPTokenizer
from sfumato.training.autoencoder import picture_grid
from sfumato.training.captions import CaptionedTraining, Captions, sheet_captions, tokenize
from sfumato.training.data import Example, batch_indices, read_folder
from sfumato.training.latents import cached_latents
from sfumato.training.run import prepare, read_architecture, run_to_end


class LatentHead(nn.Module):
    """Reads the mean latent of a caption from its hidden states.

    Args:
        width: channels of the hidden states.
        channels, height, width of a latent are ``shape``; squares of ``patch`` by ``patch`` places
            are read by one query each.
    """

    def __init__(self, width: int, shape: tuple[int, int, int], patch: int = 2) -> None:
        super().__init__()
        channels, rows, columns = shape
        if rows % patch or columns % patch:
            raise ConfigError(
                f"Latents of {rows}x{columns} cannot be parted into squares of {patch}.",
                hint="Choose an --image-size whose latents have even sides.",
            )
        self.rows, self.patch = rows // patch, patch
        self.places = nn.Parameter(torch.randn(self.rows * (columns // patch), width) * 0.02)
        self.attention = nn.MultiheadAttention(width, num_heads=8, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.read = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, channels * patch**2)
        )

    def forward(self, context: Tensor) -> Tensor:
        """Latents ``(batch, channels, height, width)`` for hidden states ``(batch, tokens, n)``."""
        places = self.places.expand(len(context), -1, -1)
        found, _ = self.attention(places, context, context, need_weights=False)
        squares = self.read(self.norm(found + places)).transpose(1, 2)
        return F.pixel_shuffle(squares.unflatten(2, (self.rows, -1)), self.patch)


class TextEncoderRecipe:
    """Captions in, the squared error of the head's latents out.

    Args:
        latents: scaled latents of all examples, float32 ``(n, channels, height, width)``.
        examples: their captions; one of each example's is drawn per step.
    """

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        latents: Tensor,
        examples: Sequence[Example],
        config: CaptionedTraining,
    ) -> None:
        if len(latents) != len(examples):
            raise DatasetError(f"{len(latents)} latents for {len(examples)} pictures.")
        self.text_encoder, self.config, self.latents = text_encoder, config, latents
        _, channels, height, width = latents.shape
        self.head = LatentHead(text_encoder.config.hidden_size, (channels, height, width))
        self.modules: dict[str, nn.Module] = {"text_encoder": text_encoder, "head": self.head}
        self.captions = Captions(tokenizer, examples, config.caption_dropout)

    def loss(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        chosen = torch.from_numpy(
            batch_indices(len(self.latents), config.batch_size, index, config.seed)
        )
        answer = self.answer(self.captions.draw(chosen, generator))
        return {"loss": F.mse_loss(answer.float(), self.latents[chosen])}

    def answer(self, ids: Tensor) -> Tensor:
        """The mean latents of captions given as token ids ``(batch, length)``."""
        # At these few tokens, plain products train faster on a CPU than the fused kernel.
        with sdpa_kernel(SDPBackend.MATH):
            return self.head(self.text_encoder(ids).last_hidden_state)


def train_text_encoder(
    data: Path,
    output: Path,
    config: CaptionedTraining,
    *,
    autoencoder: Path,
    architecture: Path | None = None,
    init: Path | None = None,
    image_size: int = 128,
    sample_every: int = 500,
) -> Path:
    """Train a text encoder on its own; returns the folder of the finished one, in float32.

    Args:
        autoencoder: folder of the first stage.
        architecture: folder with ``text_encoder.json``; the embedded model's by default.
        init: text encoder to start from instead of random weights.

    Raises:
        DatasetError, ConfigError, NumericalError: see their descriptions.
    """
    examples = read_folder(data)
    vae = AutoencoderKL.from_pretrained(autoencoder, dtype=torch.float32).eval()
    torch.manual_seed(config.seed)
    if init:
        text_encoder = CLIPTextModel.from_pretrained(init, dtype=torch.float32)
    else:
        text_encoder = CLIPTextModel.from_config(read_architecture(architecture, "text_encoder"))
    tokenizer = CLIPTokenizer(model_max_length=text_encoder.config.max_position_embeddings)
    latents = cached_latents(vae, autoencoder, examples, image_size, output)
    recipe = TextEncoderRecipe(text_encoder, tokenizer, latents, examples, config)
    settings = {"architecture": text_encoder.config.to_dict(), "init": init and str(init)}
    trainer = prepare(recipe, config, output, {**settings, "image_size": image_size})
    ids = tokenize(tokenizer, sheet_captions(examples))
    run_to_end(trainer, sample_every, lambda: mean_pictures(recipe, vae, ids))
    with trainer.averaged():
        text_encoder.save_pretrained(output / "model")
    return output / "model"


@torch.no_grad()
def mean_pictures(recipe: TextEncoderRecipe, vae: AutoencoderKL, ids: Tensor) -> Image.Image:
    """What the head expects captions to look like: blurred where pictures of a name differ."""
    latents = recipe.answer(ids) / vae.config.scaling_factor
    return picture_grid(vae.decode(latents).sample, columns=8)
