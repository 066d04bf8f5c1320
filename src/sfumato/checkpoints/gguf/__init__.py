"""GGUF files: the container that llama.cpp and stable-diffusion.cpp keep quantised weights in.

`header` reads and checks what is in a file, `types` knows the kinds of blocks, `blocks` computes
with them, `tensors` makes torch's tensors, and `writing` writes files.
"""
