"""Stable Diffusion for the computer you have."""

__version__ = "0.1.0"
