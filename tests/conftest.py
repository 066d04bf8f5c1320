"""Settings for all tests: no hub is asked for anything, and a slow machine is no failure."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the oracles are imported
os.environ["TRANSFORMERS_OFFLINE"] = "1"

from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")
