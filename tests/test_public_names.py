"""The public names: complete, loadable, and free of charge until used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato
import sfumato.errors
import sfumato.schedulers


def _imported_for_type_checkers() -> dict[str, str]:
    tree = ast.parse(Path(inspect.getsourcefile(sfumato) or "").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def _run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("name", sfumato.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(sfumato, name) is not None
    assert name in dir(sfumato)


def test_all_lists_exactly_the_lazy_names() -> None:
    assert sorted(sfumato.__all__) == sorted([*sfumato._MODULE_OF, "__version__"])


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    assert _imported_for_type_checkers() == sfumato._MODULE_OF


def test_every_error_is_public() -> None:
    errors = {
        name
        for name, value in vars(sfumato.errors).items()
        if inspect.isclass(value) and issubclass(value, sfumato.errors.SfumatoError)
    }
    assert errors <= set(sfumato.__all__)


def test_every_scheduler_is_public() -> None:
    assert set(sfumato.schedulers.CLASS_NAMES) <= set(sfumato.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="StableDifusionPipeline"):
        _ = sfumato.StableDifusionPipeline  # pyright: ignore


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = _run(
        "import sys, sfumato, sfumato.pipelines, sfumato.errors;"
        "print(sorted(set(sys.modules) & {'torch', 'numpy', 'PIL', 'tokenizers', 'tqdm'}))"
    )
    assert heavy == "[]"


def test_nothing_that_the_package_imports_is_an_oracle() -> None:
    oracles = _run(
        "import sys, sfumato\n"
        "for name in sfumato.__all__: getattr(sfumato, name)\n"
        "print(sorted(set(sys.modules) & {'diffusers', 'transformers', 'peft', 'accelerate'}))"
    )
    assert oracles == "[]"


def test_outputs_are_found_where_diffusers_has_them() -> None:
    from sfumato.pipelines.stable_diffusion import StableDiffusionPipelineOutput

    assert StableDiffusionPipelineOutput is sfumato.StableDiffusionPipelineOutput
