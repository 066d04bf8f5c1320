"""The transformer that reads text, or the tokens of a layout, in the paper's conditioned models.

It is a BERT-like encoder of pre-norm layers without masks of its own, trained together with the
UNet (arXiv:2112.10752, section 4.3.1). Parameter names, configuration fields and results are those
of diffusers' ``LDMBertModel``; the names of the original files are translated by
`sfumato.checkpoints.original`. Text-to-image has 32 layers of width 1280 over BERT's vocabulary and
77 tokens; layouts have 16 layers of width 512 over 8192 tokens, of which a picture has 92.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.config import Config, check_choice
from sfumato.errors import InputError
from sfumato.models.base import ModelMixin
from sfumato.models.checks import MAX_CHANNELS, check_ints, check_number, check_size, label
from sfumato.models.layers import Recomputable
from sfumato.outputs import BaseOutput
from sfumato.text.clip_config import ACTIVATION_KINDS, BOOKKEEPING
from sfumato.text.clip_layers import activation, init_linear

#: No table of tokens or positions is longer.
_MAX_ROWS = 10_000_000

#: What diffusers writes beside, and what has no effect there either.
_WITHOUT_EFFECT = frozenset(
    """bos_token_id classifier_dropout encoder_layerdrop eos_token_id num_hidden_layers
    scale_embedding""".split()  # noqa: SIM905
)


@dataclass(frozen=True, kw_only=True)
class LDMBertConfig(Config):
    """Shape of the encoder, with the names and defaults of diffusers.

    Attributes:
        d_model: width of the tokens.
        encoder_layers, encoder_attention_heads, encoder_ffn_dim: depth, heads, and the width
            inside the feed-forward parts.
        head_dim: channels of a head; together they need not make up ``d_model``.
        dropout, attention_dropout, activation_dropout: in training; the attention weights have
            ``attention_dropout``.
        init_std: of fresh weights.
    """

    ignored_keys: ClassVar[frozenset[str]] = BOOKKEEPING | _WITHOUT_EFFECT

    vocab_size: int = 30522
    max_position_embeddings: int = 77
    encoder_layers: int = 32
    encoder_ffn_dim: int = 5120
    encoder_attention_heads: int = 8
    head_dim: int = 64
    activation_function: str = "gelu"
    d_model: int = 1280
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    pad_token_id: int | None = 0

    def validate(self) -> None:
        check_ints(self, ("vocab_size", "max_position_embeddings"), 1, _MAX_ROWS)
        check_ints(self, ("d_model", "head_dim", "encoder_attention_heads"), 1, MAX_CHANNELS)
        check_ints(self, ("encoder_ffn_dim",), 1, 4 * MAX_CHANNELS)
        check_ints(self, ("encoder_layers",), 0, 256)
        if self.pad_token_id is not None:
            check_ints(self, ("pad_token_id",), 0, _MAX_ROWS)
        check_choice(
            label(self, "activation_function"), self.activation_function, tuple(ACTIVATION_KINDS)
        )
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            check_number(self, name, 0.0, 1.0)
        check_number(self, "init_std", 0.0, 1e6)
        inner = self.head_dim * self.encoder_attention_heads
        layer = 4 * inner + 2 * self.encoder_ffn_dim
        rows = 2 * self.vocab_size + self.max_position_embeddings
        check_size(self, self.d_model * (rows + self.encoder_layers * layer))

    def to_dict(self) -> dict[str, Any]:
        """As `Config.to_dict`, with the key by which transformers tells models apart."""
        return {**super().to_dict(), "model_type": "ldmbert"}


@dataclass
class LDMBertOutput(BaseOutput):
    """What the encoder returns; by position, absent fields are skipped.

    Attributes:
        last_hidden_state: (batch, length, d_model), after the final norm.
        hidden_states: the embeddings, the output of every layer but the last, and
            ``last_hidden_state``; present if asked for.
        attentions: (batch, heads, length, length) per layer; present if asked for.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class LDMBertAttention(nn.Module):
    """Self-attention whose queries, keys and values have no bias."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.encoder_attention_heads, config.attention_dropout
        inner = self.heads * config.head_dim
        self.k_proj = nn.Linear(config.d_model, inner, bias=False)
        self.v_proj = nn.Linear(config.d_model, inner, bias=False)
        self.q_proj = nn.Linear(config.d_model, inner, bias=False)
        self.out_proj = nn.Linear(inner, config.d_model)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``x``: (batch, length, width). ``mask``: additive, (batch, 1, 1, length)."""
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The attention probabilities, which the fused kernel of `forward` never forms."""
        q, k = self._heads(self.q_proj(x)), self._heads(self.k_proj(x))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return (scores if mask is None else scores + mask).softmax(dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class LDMBertEncoderLayer(Recomputable):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout
        self.activation_fn = activation(config.activation_function)
        self.self_attn = LDMBertAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def compute(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self._drop(self.self_attn(self.self_attn_layer_norm(x), mask))
        inner = self.activation_fn(self.fc1(self.final_layer_norm(x)))
        inner = F.dropout(inner, self.activation_dropout, self.training)
        x = x + self._drop(self.fc2(inner))
        if x.dtype == torch.float16:  # what overflowed stays a number
            bound = torch.finfo(x.dtype).max - 1000
            x = x.clamp(-bound, bound)
        return x

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class LDMBertEncoder(nn.Module):
    """Embeddings of tokens and of positions, the layers, and a norm."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList(
            LDMBertEncoderLayer(config) for _ in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor | None,
        position_ids: Tensor | None,
        states: list[Tensor] | None,
        attentions: list[Tensor] | None,
    ) -> Tensor:
        """Encode embedded tokens, ``embeds`` of (batch, length, width).

        Args:
            mask: (batch, length), 1 for tokens to attend to and 0 for others.
            states: a list that receives the input of every layer, and the result.
            attentions: a list that receives the attention probabilities of every layer.
        """
        length, longest = embeds.shape[1], self.embed_positions.num_embeddings
        if length > longest:
            raise InputError(
                f"There are {length} tokens but positions for at most {longest} "
                "(`max_position_embeddings`).",
                hint="Truncate the text: pass `truncation=True` to the tokenizer.",
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=embeds.device)
        x = embeds + self.embed_positions(position_ids)
        x = F.dropout(x, self.dropout, self.training)
        hidden = None if mask is None else _hiding(mask, x)
        for layer in self.layers:
            assert isinstance(layer, LDMBertEncoderLayer)
            if states is not None:
                states.append(x)
            if attentions is not None:
                normed = layer.self_attn_layer_norm(x)
                attentions.append(layer.self_attn.weights(normed, hidden))
            x = layer(x, hidden)
        x = self.layer_norm(x)
        if states is not None:
            states.append(x)
        return x


def _hiding(mask: Tensor, like: Tensor) -> Tensor:
    """Additive (batch, 1, 1, length): the lowest number where a mask is not 1, else its absence."""
    absent = 1.0 - mask.to(like.device, like.dtype)
    return absent.masked_fill(absent != 0, torch.finfo(like.dtype).min)[:, None, None, :]


class LDMBertModel(ModelMixin[LDMBertConfig]):
    """The encoder, and the unused head that its training had.

    Attributes:
        weights_name: the file name of transformers, where networks of diffusers have another.
    """

    config_class = LDMBertConfig
    weights_name: ClassVar[str] = "model.safetensors"

    def __init__(self, config: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(config, **fields)
        self.model = LDMBertEncoder(self.config)
        self.to_logits = nn.Linear(self.config.d_model, self.config.vocab_size)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                init_linear(part, self.config.init_std)
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=self.config.init_std)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, (vocab_size, d_model)."""
        return self.model.embed_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool = True,
    ) -> LDMBertOutput | tuple[Any, ...]:
        """Encode tokens.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 0 for tokens that nobody attends to. The published
                models attend to padding, so pipelines pass none.
            position_ids: in place of 0, 1, 2, ...
            inputs_embeds: (batch, length, d_model), in place of ``input_ids``.
            output_attentions, output_hidden_states: return these too.
            return_dict: False returns a tuple.

        Raises:
            InputError: both or none of ids and embeddings, too many tokens, or an id that is
                not in the vocabulary.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("Give either `input_ids` or `inputs_embeds`, and not both.")
        if input_ids is not None:
            inputs_embeds = self._embed(input_ids)
        assert inputs_embeds is not None
        states: list[Tensor] | None = [] if output_hidden_states else None
        attentions: list[Tensor] | None = [] if output_attentions else None
        x = self.model(inputs_embeds, attention_mask, position_ids, states, attentions)
        out = LDMBertOutput(
            last_hidden_state=x,
            hidden_states=None if states is None else tuple(states),
            attentions=None if attentions is None else tuple(attentions),
        )
        return out if return_dict else out.to_tuple()

    def _embed(self, input_ids: Tensor) -> Tensor:
        ids = input_ids.reshape(-1, input_ids.shape[-1])
        size = self.config.vocab_size
        lowest, highest = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
        if lowest < 0 or highest >= size:
            raise InputError(
                f"The ids are {lowest} to {highest} but the vocabulary has {size} tokens.",
                hint="The tokenizer is of another model.",
            )
        return self.model.embed_tokens(ids)
