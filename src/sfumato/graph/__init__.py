"""The networks again, as plain functions over a few array operations; nothing here imports torch.

`ops` says which operations there are, `weights` how layers find their numbers; `unet`,
`autoencoder`, `clip_text` and `clip_vision` are the networks, written once. A backend is one class
with these operations: `numpy_ops` computes with NumPy alone, which is what lets the command draw
before torch would even be imported.
"""
