"""Conventions of the networks that neither their configurations nor their weights tell.

The torch networks of this folder and those of `sfumato.graph` read them here; nothing is imported.
"""

from __future__ import annotations

#: ``act_fn`` of a configuration -> the function that is meant.
ACTIVATION_KINDS = {
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "gelu": "gelu",
    "relu": "relu",
}
#: Groups in which the channels of a context are normalised.
CONTEXT_GROUPS = 32
#: Added to the score of a masked token; as in diffusers, rather than minus infinity.
MASKED = -10_000.0
#: The autoencoder's group norms all use this epsilon; the UNet's do not.
VAE_EPS = 1e-6
#: The epsilon of a transformer's group norm, whatever that of the residual blocks is.
TRANSFORMER_EPS = 1e-6
#: The epsilon of layer norms, and of norms over a context, outside CLIP.
NORM_EPS = 1e-5
#: Times are told by waves whose longest period is this, over two pi.
MAX_PERIOD = 10_000
