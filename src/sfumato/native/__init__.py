"""Kernels in C for the processor's widest instructions, where the installation could build them.

The library takes addresses and sizes; nothing here knows torch, so that a path without torch can
use it too. `sfumato.runtime.kernels` puts it behind torch's functions.

To add a kernel: write it in a ``.c`` file of this folder, name the file in ``pyproject.toml``, and
its arguments in `library`.
"""
