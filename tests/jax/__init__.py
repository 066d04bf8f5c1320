"""The JAX path, compared with that of torch."""
