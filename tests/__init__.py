"""Tests, laid out like the package; `parity` compares with diffusers and transformers."""
