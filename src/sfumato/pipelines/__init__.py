"""Pipelines: prompts in, pictures out, under diffusers' interface.

Read `stable_diffusion` first: its ``__call__`` is the one flow. `stages` has its stations,
`checks` its arguments, `base` what all pipelines are, `storage` how they are kept in folders.
"""
