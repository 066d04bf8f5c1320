"""The network of the condition in the latent diffusion paper's files: its kind, names and sizes.

It lies below ``cond_stage_model.``: a table of classes, the layer that maps a semantic map's
channels, or a transformer that reads a text or a layout. `CONDITION_MARKERS` tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sfumato.checkpoints.original.keys import KeyMap, Rule
from sfumato.checkpoints.original.sizes import Shapes, count_numbered, size_of

CLASS, SEMANTIC, TRANSFORMER = "class", "semantic", "transformer"

#: A name that each kind has, without prefix.
CONDITION_MARKERS = {
    CLASS: "embedding.weight",
    SEMANTIC: "channel_mapper.weight",
    TRANSFORMER: "transformer.token_emb.weight",
}

#: Tokens of a text. Layouts have another number, which is what tells the two apart.
TEXT_LENGTH = 77

#: Channels of a head in the original transformer, whatever its width.
_HEAD = 64

#: No transformer has more layers.
_MOST_LAYERS = 256


def condition_kind(names: Iterable[str]) -> str:
    """The kind of a network by the names that its weights have here."""
    if "model.embed_tokens.weight" in (present := set(names)):
        return TRANSFORMER
    return CLASS if CONDITION_MARKERS[CLASS] in present else SEMANTIC


def condition_keys(kind: str) -> KeyMap:
    """The rules of names: those of tables and maps are alike on both sides."""
    if kind == TRANSFORMER:
        return KeyMap(_transformer_rules())
    name = CONDITION_MARKERS[kind].removesuffix(".weight")
    return KeyMap([Rule(name, (name,))])


def _transformer_rules() -> Iterator[Rule]:
    old, new = "transformer", "model"
    yield Rule(f"{old}.token_emb", (f"{new}.embed_tokens",))
    yield Rule(f"{old}.pos_emb.emb", (f"{new}.embed_positions",))
    yield Rule(f"{old}.norm", (f"{new}.layer_norm",))
    yield Rule(f"{old}.to_logits", ("to_logits",))
    for layer in range(_MOST_LAYERS):  # each is two of the original's: attention, then the rest
        attends, feeds = (f"{old}.attn_layers.layers.{2 * layer + i}" for i in (0, 1))
        name = f"{new}.layers.{layer}"
        yield Rule(f"{attends}.0", (f"{name}.self_attn_layer_norm",))
        for part in "qkv":
            yield Rule(f"{attends}.1.to_{part}", (f"{name}.self_attn.{part}_proj",))
        yield Rule(f"{attends}.1.to_out", (f"{name}.self_attn.out_proj",))
        yield Rule(f"{feeds}.0", (f"{name}.final_layer_norm",))
        yield Rule(f"{feeds}.1.net.0.0", (f"{name}.fc1",))
        yield Rule(f"{feeds}.1.net.2", (f"{name}.fc2",))


def condition_config(
    kind: str, shapes: Shapes, family: Mapping[str, Any], stages: int
) -> dict[str, Any]:
    """The configuration of the network.

    Args:
        kind: of `CONDITION_MARKERS`.
        shapes: of its weights, without prefix.
        family: what shapes cannot say.
        stages: how often the first stage halves a picture; a map is halved as often.

    Raises:
        CheckpointError: a weight is missing, or no weight of such a network.
    """
    marker = CONDITION_MARKERS[kind]
    if kind == CLASS:
        sizes = {"n_classes": size_of(shapes, marker, 0), "embed_dim": size_of(shapes, marker, 1)}
        return {**family, **sizes}
    if kind == SEMANTIC:
        return {
            **family,
            "n_stages": stages,
            "in_channels": size_of(shapes, marker, 1),
            "out_channels": size_of(shapes, marker, 0),
            "bias": "channel_mapper.bias" in shapes,
        }
    first = "transformer.attn_layers.layers"
    inner = size_of(shapes, f"{first}.0.1.to_q.weight", 0)
    heads = max(inner // _HEAD, 1)
    return {
        **family,
        "vocab_size": size_of(shapes, marker, 0),
        "d_model": size_of(shapes, marker, 1),
        "max_position_embeddings": size_of(shapes, "transformer.pos_emb.emb.weight", 0),
        "encoder_layers": count_numbered(shapes, first + ".{}.0.weight") // 2,
        "encoder_ffn_dim": size_of(shapes, f"{first}.1.1.net.0.0.weight", 0),
        "encoder_attention_heads": heads,
        "head_dim": inner // heads,
        "dropout": 0.0,
    }


def condition_family(kind: str, shapes: Shapes, vector_quantised: bool) -> str:
    """The name of the family of a file with this network; see `sfumato.checkpoints.original`.

    Args:
        kind, shapes: as of `condition_config`.
        vector_quantised: the first stage has a codebook.
    """
    if kind == SEMANTIC:
        return "latent-diffusion-semantic"
    if kind == CLASS:  # the older model knows the classes alone, the newer one a class for none
        only_classes = size_of(shapes, CONDITION_MARKERS[CLASS], 0) == 1000
        return "latent-diffusion-class-f8" if only_classes else "latent-diffusion-class"
    if size_of(shapes, "transformer.pos_emb.emb.weight", 0) != TEXT_LENGTH:
        return "latent-diffusion-layout"
    return "latent-diffusion-text-f4" if vector_quantised else "latent-diffusion-text"
