"""The CLIP text encoder: token ids to the vectors that the UNet attends to.

``conditioning.py`` calls it between the tokenizer and the denoising loop. Configuration fields,
parameter names and results are those of transformers' ``CLIPTextModel``, so its folders load here
and the other way round. Stable Diffusion 1.x uses the text half of CLIP ViT-L/14 (quick_gelu),
2.x that of OpenCLIP ViT-H/14 without its last layer (gelu).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sfumato.adapters.network_methods import AdapterMethods
from sfumato.errors import InputError
from sfumato.models.base import ModelMixin
from sfumato.outputs import BaseOutput
from sfumato.text.clip_config import CLIPTextConfig as CLIPTextConfig
from sfumato.text.clip_layers import CLIPEncoder, causal_padding_mask, init_linear


@dataclass
class CLIPTextModelOutput(BaseOutput):
    """What the text encoder returns; by position, absent fields are skipped.

    Attributes:
        last_hidden_state: (batch, length, hidden_size), after the final layer norm.
        pooler_output: (batch, hidden_size), the vector at the end-of-text token.
        hidden_states: the embeddings and the output of every layer, without the final layer
            norm; present if asked for.
        attentions: (batch, heads, length, length) per layer; present if asked for.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CLIPTextProjectionOutput(BaseOutput):
    """As `CLIPTextModelOutput`, with the projected vector in place of the pooled one.

    Attributes:
        text_embeds: (batch, projection_dim), comparable with CLIP's image embeddings.
    """

    text_embeds: Tensor
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class CLIPTextEmbeddings(nn.Module):
    """Token embedding plus learned position embedding."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        for table in (self.token_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.02 * config.initializer_factor)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.token_embedding(input_ids) + self.position_embedding(position_ids)


class CLIPTextTransformer(nn.Module):
    """Embeddings, causal encoder, final layer norm, pooling at the end-of-text token."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.eos_token_id = config.eos_token_id

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> CLIPTextModelOutput:
        input_ids = input_ids.reshape(-1, input_ids.shape[-1])
        longest = self.embeddings.position_embedding.num_embeddings
        if input_ids.shape[1] > longest:
            raise InputError(
                f"`input_ids` has {input_ids.shape[1]} tokens per prompt but the text encoder has "
                f"positions for at most {longest} (`max_position_embeddings`).",
                hint="Truncate the prompt, or pass `truncation=True` to the tokenizer.",
            )
        x = self.embeddings(input_ids, position_ids)
        mask = None if attention_mask is None else causal_padding_mask(attention_mask, x)
        states: list[Tensor] | None = [] if output_hidden_states else None
        attentions: list[Tensor] | None = [] if output_attentions else None
        x = self.final_layer_norm(self.encoder(x, mask, True, states, attentions))
        return CLIPTextModelOutput(
            last_hidden_state=x,
            pooler_output=x[torch.arange(len(x), device=x.device), self._end_of_text(input_ids)],
            hidden_states=None if states is None else tuple(states),
            attentions=None if attentions is None else tuple(attentions),
        )

    def _end_of_text(self, input_ids: Tensor) -> Tensor:
        """Position of the end-of-text token per prompt, (batch,)."""
        if self.eos_token_id == 2:  # the early checkpoints' mistake: see CLIPTextConfig
            return input_ids.argmax(dim=-1)
        return (input_ids == self.eos_token_id).int().argmax(dim=-1)


def _drop_ignored_weights(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    for key in _CLIPTextBase.ignored_weights:
        state_dict.pop(prefix + key, None)


class _CLIPTextBase(ModelMixin[CLIPTextConfig], AdapterMethods):
    """What the text encoder has with and without projection.

    Attributes:
        weights_name: the file name of transformers, where networks of diffusers have another.
        ignored_weights: keys that old checkpoints hold and that are no parameters:
            ``position_ids`` is 0, 1, 2, ... (some merged checkpoints even damaged it).
    """

    config_class = CLIPTextConfig
    adapter_prefix = "text_encoder"
    weights_name: ClassVar[str] = "model.safetensors"
    ignored_weights: ClassVar[frozenset[str]] = frozenset({"text_model.embeddings.position_ids"})
    text_model: CLIPTextTransformer

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        self.text_model = CLIPTextTransformer(self.config)
        self.register_load_state_dict_pre_hook(_drop_ignored_weights)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, (vocab_size, hidden_size)."""
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.text_model.embeddings.token_embedding = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None) -> nn.Embedding:
        """Grow or shrink the vocabulary; ``config.vocab_size`` follows.

        New rows are the mean of the old ones: a neutral start for textual inversion that draws no
        random numbers.

        Returns:
            The token embedding, the old one when the size does not change.

        Raises:
            InputError: when the size is below 1.
        """
        old = self.get_input_embeddings()
        if new_num_tokens is None or new_num_tokens == old.num_embeddings:
            return old
        if new_num_tokens < 1:
            raise InputError(f"`new_num_tokens` has to be at least 1 but is {new_num_tokens}.")
        with torch.no_grad():
            kept = old.weight[:new_num_tokens]
            mean = old.weight.float().mean(dim=0, keepdim=True).to(old.weight.dtype)
            rows = torch.cat([kept, mean.expand(new_num_tokens - len(kept), -1)])
        new = nn.Embedding.from_pretrained(rows, freeze=not old.weight.requires_grad)
        self.set_input_embeddings(new.train(old.training))
        self.config = self.config.replace(vocab_size=new_num_tokens)
        return new


class CLIPTextModel(_CLIPTextBase):
    """The text encoder of Stable Diffusion; see the module's docstring."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool = True,
    ) -> CLIPTextModelOutput | tuple[Any, ...]:
        """Encode token ids.

        Args:
            input_ids: (batch, length) integers below ``vocab_size``.
            attention_mask: (batch, length), 1 for tokens to attend to. Attention is causal with
                and without it.
            position_ids: (1 or batch, length), default 0, 1, 2, ...

        Raises:
            InputError: when there are more tokens than positions.
        """
        out: CLIPTextModelOutput = self.text_model(
            input_ids,
            attention_mask,
            position_ids,
            output_hidden_states=bool(output_hidden_states),
            output_attentions=bool(output_attentions),
        )
        return out if return_dict else out.to_tuple()


class CLIPTextModelWithProjection(_CLIPTextBase):
    """`CLIPTextModel` with the linear map into the space that CLIP shares with images."""

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        width = self.config.hidden_size
        self.text_projection = nn.Linear(width, self.config.projection_dim, bias=False)
        init_linear(self.text_projection, width**-0.5 * self.config.initializer_factor)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool = True,
    ) -> CLIPTextProjectionOutput | tuple[Any, ...]:
        """As `CLIPTextModel.forward`, with ``text_embeds`` first."""
        out = cast(
            CLIPTextModelOutput,
            self.text_model(
                input_ids,
                attention_mask,
                position_ids,
                output_hidden_states=bool(output_hidden_states),
                output_attentions=bool(output_attentions),
            ),
        )
        projected = CLIPTextProjectionOutput(
            text_embeds=self.text_projection(out.pooler_output),
            last_hidden_state=out.last_hidden_state,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return projected if return_dict else projected.to_tuple()
