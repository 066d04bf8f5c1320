"""The configurations of CLIP's text and vision encoders: their fields and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from sfumato.config import Config, check_choice
from sfumato.errors import ConfigError
from sfumato.models.checks import (
    MAX_CHANNELS,
    check_flags,
    check_ints,
    check_number,
    check_size,
    label,
)

#: ``hidden_act`` of a configuration -> the function that is meant. The names are those of
#: transformers, which has several for one function.
ACTIVATION_KINDS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}

#: Facts about a checkpoint that transformers keeps in config.json and that do not shape this model.
BOOKKEEPING = frozenset(
    """add_cross_attention architectures attn_implementation bad_words_ids begin_suppress_tokens
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dropout dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label is_decoder is_encoder_decoder label2id length_penalty
    max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores prefix problem_type
    pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16 use_cache""".split()  # noqa: SIM905
)


#: No table of tokens or positions is longer.
_MAX_ROWS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(Config):
    """Shape of a CLIP text encoder, with transformers' names and defaults.

    Attributes:
        eos_token_id: decides where the pooled output is read. The value 2 is the mistake of early
            checkpoints (Stable Diffusion 1.x has it) and means "at the highest id".
        use_attention_mask: hide padding from attention. Stable Diffusion does not; the pipelines
            of diffusers look for this key, so it is read and kept.
    """

    ignored_keys: ClassVar[frozenset[str]] = BOOKKEEPING

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    use_attention_mask: bool = False

    def validate(self) -> None:
        check_ints(self, ("vocab_size", "max_position_embeddings"), 1, _MAX_ROWS)
        check_ints(self, ("hidden_size", "projection_dim"), 1, MAX_CHANNELS)
        check_ints(self, ("intermediate_size",), 1, 4 * MAX_CHANNELS)
        check_ints(self, ("num_attention_heads",), 1, MAX_CHANNELS)
        check_ints(self, ("num_hidden_layers",), 0, 256)
        ids = (name for name in ("bos_token_id", "pad_token_id") if self[name] is not None)
        check_ints(self, ("eos_token_id", *ids), 0, _MAX_ROWS)
        check_flags(self, ("use_attention_mask",))
        check_choice(label(self, "hidden_act"), self.hidden_act, tuple(ACTIVATION_KINDS))
        for name in ("layer_norm_eps", "attention_dropout"):
            check_number(self, name, 0.0, 1.0)
        for name in ("initializer_range", "initializer_factor"):
            check_number(self, name, 0.0, 1e6)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"`{label(self, 'hidden_size')}` has to be a multiple of `num_attention_heads` "
                f"but {self.hidden_size} is not one of {self.num_attention_heads}."
            )
        rows = self.vocab_size + self.max_position_embeddings
        layer = 4 * self.hidden_size + 2 * self.intermediate_size
        check_size(self, self.hidden_size * (rows + self.num_hidden_layers * layer))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.from_dict`; of a whole CLIP model's configuration the text half is taken."""
        half = values.get("text_config")
        return super().from_dict(half if isinstance(half, Mapping) else values)

    def to_dict(self) -> dict[str, Any]:
        """As `Config.to_dict`, with the key by which transformers tells models apart."""
        return {**super().to_dict(), "model_type": "clip_text_model"}


#: Facts about a checkpoint that do not shape this model, those of a text encoder among them.
IGNORED = BOOKKEEPING | {"pad_token_id", "bos_token_id", "eos_token_id"}


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(Config):
    """Shape of a CLIP vision encoder, with transformers' names and defaults.

    Attributes:
        image_size: height and width of the pictures, in pixels.
        patch_size: height and width of a patch, in pixels.
    """

    ignored_keys: ClassVar[frozenset[str]] = IGNORED

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0

    def validate(self) -> None:
        check_ints(self, ("hidden_size", "projection_dim"), 1, MAX_CHANNELS)
        check_ints(self, ("intermediate_size",), 1, 4 * MAX_CHANNELS)
        check_ints(self, ("num_attention_heads", "num_channels"), 1, MAX_CHANNELS)
        check_ints(self, ("num_hidden_layers",), 0, 256)
        check_ints(self, ("image_size",), 1, 8192)
        check_ints(self, ("patch_size",), 1, self.image_size)
        check_choice(label(self, "hidden_act"), self.hidden_act, tuple(ACTIVATION_KINDS))
        for name in ("layer_norm_eps", "attention_dropout"):
            check_number(self, name, 0.0, 1.0)
        for name in ("initializer_range", "initializer_factor"):
            check_number(self, name, 0.0, 1e6)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"`{label(self, 'hidden_size')}` has to be a multiple of `num_attention_heads` "
                f"but {self.hidden_size} is not one of {self.num_attention_heads}."
            )
        rows = self.num_positions + self.num_channels * self.patch_size**2
        layer = 4 * self.hidden_size + 2 * self.intermediate_size
        check_size(self, self.hidden_size * (rows + self.num_hidden_layers * layer))

    @property
    def num_positions(self) -> int:
        """Patches of a picture, and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.from_dict`; of a whole CLIP model's configuration the vision half is taken."""
        return super().from_dict(vision_half(values) or values)

    def to_dict(self) -> dict[str, Any]:
        """As `Config.to_dict`, with the key by which transformers tells models apart."""
        return {**super().to_dict(), "model_type": "clip_vision_model"}


def vision_half(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part about the vision encoder in a whole CLIP model's configuration.

    Early files have it in a second place too, which counts more.
    """
    halves = (values.get("vision_config"), values.get("vision_config_dict"))
    return {k: v for half in halves if isinstance(half, Mapping) for k, v in half.items()}
