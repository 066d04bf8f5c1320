"""The networks and the pipeline in JAX, under the names that diffusers gave its Flax classes.

The networks are those of `sfumato.graph`; `ops` computes them, `attention` has the one operation
that XLA does not do well by itself on a processor. Nothing here imports torch.
"""

from importlib.util import find_spec

from sfumato.errors import MissingDependencyError

if find_spec("jax") is None:
    raise MissingDependencyError("This part needs JAX.", hint="pip install 'sfumato[jax]'")
