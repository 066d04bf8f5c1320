"""The networks and the pipeline in JAX, under the names that diffusers gave its Flax classes.

The networks are those of `sfumato.graph`; `ops` computes them, `attention` has the one operation
that XLA does not do well by itself on a processor. Nothing here imports torch.
"""
