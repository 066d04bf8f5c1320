"""k-diffusion's samplers without k-diffusion's package, whose import wants half of the field.

Install it as ``pip install --no-deps k-diffusion``; the samplers themselves need torchsde.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


def load(name: str) -> ModuleType:
    """The module of that name, ``sampling`` or ``external``; skips the test if there is none."""
    pytest.importorskip("torchsde")
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        pytest.skip("k-diffusion is not installed")
    home = "k_diffusion_alone"
    if home not in sys.modules:
        package, utils = ModuleType(home), ModuleType(f"{home}.utils")
        utils.__dict__["append_dims"] = lambda x, n: x.reshape(x.shape + (1,) * (n - x.ndim))
        package.__dict__["utils"] = utils
        sys.modules |= {home: package, f"{home}.utils": utils}
        if importlib.util.find_spec("torchdiffeq") is None:
            solver = ModuleType("torchdiffeq")  # only its likelihoods integrate with it
            solver.__dict__["odeint"] = torch.trapezoid
            sys.modules["torchdiffeq"] = solver
    if name == "external":
        sys.modules[home].__dict__["sampling"] = load("sampling")
    full = f"{home}.{name}"
    if full not in sys.modules:
        file = Path(found.submodule_search_locations[0]) / f"{name}.py"
        spec = importlib.util.spec_from_file_location(full, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]
