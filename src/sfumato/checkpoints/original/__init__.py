"""Checkpoints in one file, in the layout of the original latent-diffusion code.

In the order of the flow: `source` opens a file and says what tensors it holds; `families` tells
which model it is; `sizes` and `original_config` make configurations; `keys` renames; `loading`
builds networks, `pipelines.single_file` a pipeline of them; `saving` goes the way back.
"""
