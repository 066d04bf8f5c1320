"""Weights and configurations on disk: what others wrote is read as data, what is ours is whole.

From the bytes up: `files` opens, `atomic` writes; `jsonfile`, `header` with `tensors`, and
`torch_file` with `pickles` read one file each; `weight_files` finds a network's files, `fitting`
joins them to the network, `folders` does both; `model_index`, `classes` and `components` make a
pipeline's folder of them.
"""
