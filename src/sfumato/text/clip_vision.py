"""The CLIP vision encoder: pictures to vectors, for the safety checker and for picture prompts.

Configuration fields, parameter names and results are those of transformers' ``CLIPVisionModel``,
so its folders load here and the other way round. The architecture is that of Radford et al. 2021
(arXiv:2103.00020): patches of the picture and one class token, without a causal mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import InputError
from sfumato.models.base import ModelMixin
from sfumato.outputs import BaseOutput
from sfumato.text.clip_config import CLIPVisionConfig as CLIPVisionConfig
from sfumato.text.clip_layers import CLIPEncoder, init_linear


@dataclass
class CLIPVisionModelOutput(BaseOutput):
    """What the vision encoder returns; by position, absent fields are skipped.

    Attributes:
        last_hidden_state: (batch, positions, hidden_size), without the final layer norm.
        pooler_output: (batch, hidden_size), the class token after the final layer norm.
        hidden_states: the embeddings and the output of every layer; present if asked for.
        attentions: (batch, heads, positions, positions) per layer; present if asked for.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CLIPVisionProjectionOutput(BaseOutput):
    """As `CLIPVisionModelOutput`, with the projected vector in place of the pooled one.

    Attributes:
        image_embeds: (batch, projection_dim), comparable with CLIP's text embeddings.
    """

    image_embeds: Tensor
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class CLIPVisionEmbeddings(nn.Module):
    """Class token and patches, plus learned position embeddings."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.image_size = config.image_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(config.num_positions, width)
        factor = config.initializer_factor
        nn.init.normal_(self.class_embedding, std=width**-0.5 * factor)
        for layer in (self.patch_embedding, self.position_embedding):
            nn.init.normal_(layer.weight, std=config.initializer_range * factor)

    def forward(self, pixel_values: Tensor, interpolate: bool) -> Tensor:
        size = (self.image_size, self.image_size)
        if pixel_values.ndim != 4 or (not interpolate and tuple(pixel_values.shape[2:]) != size):
            raise InputError(
                f"`pixel_values` has to be (batch, channels, {size[0]}, {size[1]}) but is "
                f"{tuple(pixel_values.shape)}.",
                hint="Let the image processor make it, or pass `interpolate_pos_encoding=True`.",
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        tokens = self.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([tokens, patches.flatten(2).transpose(1, 2)], dim=1)
        return x + self._positions(*patches.shape[2:])

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The position embeddings, stretched when the grid of patches is another."""
        table = self.position_embedding.weight
        side = round((len(table) - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return table
        grid = table[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([table[:1], grid[0].flatten(1).T])


class CLIPVisionTransformer(nn.Module):
    """Embeddings, encoder, and layer norms around it (the first one's name is transformers')."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> CLIPVisionModelOutput:
        x = self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding))
        states: list[Tensor] | None = [] if output_hidden_states else None
        attentions: list[Tensor] | None = [] if output_attentions else None
        x = self.encoder(x, None, False, states, attentions)
        return CLIPVisionModelOutput(
            last_hidden_state=x,
            pooler_output=self.post_layernorm(x[:, 0]),
            hidden_states=None if states is None else tuple(states),
            attentions=None if attentions is None else tuple(attentions),
        )


def _drop_position_ids(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    state_dict.pop(f"{prefix}vision_model.embeddings.position_ids", None)


class _CLIPVisionBase(ModelMixin[CLIPVisionConfig]):
    """What the vision encoder has with and without projection.

    Attributes:
        weights_name, ignored_weights: as of the text encoder.
    """

    config_class = CLIPVisionConfig
    weights_name: ClassVar[str] = "model.safetensors"
    ignored_weights: ClassVar[frozenset[str]] = frozenset({"vision_model.embeddings.position_ids"})
    vision_model: CLIPVisionTransformer

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        self.vision_model = CLIPVisionTransformer(self.config)
        self.register_load_state_dict_pre_hook(_drop_position_ids)

    def get_input_embeddings(self) -> nn.Conv2d:
        """The layer that embeds patches."""
        return self.vision_model.embeddings.patch_embedding


class CLIPVisionModel(_CLIPVisionBase):
    """The vision encoder; see the module's docstring."""

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool = True,
    ) -> CLIPVisionModelOutput | tuple[Any, ...]:
        """Encode pictures.

        Args:
            pixel_values: (batch, channels, height, width), as `CLIPImageProcessor` makes them.
            interpolate_pos_encoding: take pictures of any size.

        Raises:
            InputError: for pictures of another size.
        """
        out = self.vision_model(
            pixel_values, output_attentions, output_hidden_states, interpolate_pos_encoding
        )
        return out if return_dict else out.to_tuple()


class CLIPVisionModelWithProjection(_CLIPVisionBase):
    """`CLIPVisionModel` with the linear map into the space that CLIP shares with texts."""

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        width = self.config.hidden_size
        self.visual_projection = nn.Linear(width, self.config.projection_dim, bias=False)
        init_linear(self.visual_projection, width**-0.5 * self.config.initializer_factor)

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool = True,
    ) -> CLIPVisionProjectionOutput | tuple[Any, ...]:
        """As `CLIPVisionModel.forward`, with ``image_embeds`` first."""
        out = cast(
            CLIPVisionModelOutput,
            self.vision_model(
                pixel_values, output_attentions, output_hidden_states, interpolate_pos_encoding
            ),
        )
        projected = CLIPVisionProjectionOutput(
            image_embeds=self.visual_projection(out.pooler_output),
            last_hidden_state=out.last_hidden_state,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return projected if return_dict else projected.to_tuple()
