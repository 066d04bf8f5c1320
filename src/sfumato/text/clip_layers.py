"""The transformer blocks inside CLIP: attention, MLP and the stack of pre-norm layers.

``clip.py`` builds the text encoder from these. Attribute names are those of transformers, so that
``state_dict`` keys are too. The architecture is that of Radford et al. 2021 (arXiv:2103.00020,
section 2.4): GPT-2-like blocks with layer norm before attention and MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.models.layers import Recomputable
from sfumato.text.clip_config import ACTIVATION_KINDS


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that OpenAI trained CLIP with: ``x * sigmoid(1.702 x)``."""
    return x * torch.sigmoid(1.702 * x)


#: The functions, by the kinds of `ACTIVATION_KINDS`.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.01),
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function that a configuration names so (see `ACTIVATION_KINDS`)."""
    return _ACTIVATIONS[ACTIVATION_KINDS[name]]


class EncoderConfig(Protocol):
    """The fields of a configuration that the blocks read."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def attention_dropout(self) -> float: ...
    @property
    def initializer_factor(self) -> float: ...


def init_linear(layer: nn.Linear, std: float) -> None:
    """Draw the weights from a normal distribution and zero the bias."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def residual_std(config: EncoderConfig) -> float:
    """Standard deviation for layers whose output is summed over the depth of the network."""
    depth = (2 * config.num_hidden_layers) ** -0.5
    return config.hidden_size**-0.5 * depth * config.initializer_factor


class CLIPAttention(nn.Module):
    """Multi-head self-attention with biases on all four projections."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            init_linear(layer, residual_std(config))
        init_linear(self.out_proj, width**-0.5 * config.initializer_factor)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """``x``: (batch, length, width). ``mask``: additive, (batch, 1, length, length); a given
        mask already holds the causal part, so ``causal`` counts only without one."""
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal and mask is None,
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """The attention probabilities, (batch, heads, length, length), for people who look at
        them; the fused kernel of `forward` never forms them."""
        q, k = self._heads(self.q_proj(x)), self._heads(self.k_proj(x))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores + mask
        elif causal:
            scores = scores + causal_mask(x.shape[1], x)
        return scores.softmax(dim=-1, dtype=torch.float32).to(x.dtype)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class CLIPMLP(nn.Module):
    """Two linear layers with the configuration's activation between them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation_fn = activation(config.hidden_act)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        init_linear(self.fc1, (2 * config.hidden_size) ** -0.5 * config.initializer_factor)
        init_linear(self.fc2, residual_std(config))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


class CLIPEncoderLayer(Recomputable):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def compute(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, causal)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        causal: bool,
        states: list[Tensor] | None = None,
        attentions: list[Tensor] | None = None,
    ) -> Tensor:
        """Run all layers over ``x`` (batch, length, width).

        Args:
            states: a list that receives the input and the output of every layer.
            attentions: a list that receives the attention probabilities of every layer.
        """
        for layer in self.layers:
            assert isinstance(layer, CLIPEncoderLayer)
            if states is not None:
                states.append(x)
            if attentions is not None:
                attentions.append(layer.self_attn.weights(layer.layer_norm1(x), mask, causal))
            x = layer(x, mask, causal)
        if states is not None:
            states.append(x)
        return x


def causal_mask(length: int, like: Tensor) -> Tensor:
    """Additive mask (length, length) that hides later positions, in the dtype of ``like``."""
    lowest = torch.finfo(like.dtype).min
    full = torch.full((length, length), lowest, dtype=like.dtype, device=like.device)
    return full.triu(diagonal=1)


def causal_padding_mask(attention_mask: Tensor, like: Tensor) -> Tensor:
    """Additive mask (batch, 1, length, length) that hides later positions and padding.

    Args:
        attention_mask: (batch, length), 1 for tokens to attend to; everything else is hidden.

    Both parts use the lowest finite number and are added, as in transformers: where every earlier
    token is hidden (padding on the left), the softmax stays defined.
    """
    hidden = attention_mask.to(like.device) != 1
    padding = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    padding = padding.masked_fill(hidden, torch.finfo(like.dtype).min)
    return padding[:, None, None, :] + causal_mask(attention_mask.shape[1], like)
