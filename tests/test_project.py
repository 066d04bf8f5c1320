"""The project keeps its own rules: sizes, walls between folders, pins, texts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sfumato"
MODULES = sorted(PACKAGE.rglob("*.py"))
OURS = [
    *MODULES,
    *sorted((ROOT / "recipes").rglob("*.py")),
    *sorted((ROOT / "tests").rglob("*.py")),
]

#: Modules that have to work where torch is not wanted: the JAX path and the command's help.
TORCH_FREE = (
    "sfumato",
    "sfumato.errors",
    "sfumato.config",
    "sfumato.diffusion.schedule",
    "sfumato.diffusion.plan",
    "sfumato.diffusion.rng",
    "sfumato.diffusion.samplers",
    "sfumato.native.library",
    "sfumato.graph.unet",
    "sfumato.graph.autoencoder",
    "sfumato.graph.clip_text",
    "sfumato.graph.clip_vision",
    "sfumato.graph.numpy_ops",
    "sfumato.pipelines.sampler_names",
    "sfumato.schedulers",
    "sfumato.schedulers.dpmsolver_multistep",
    "sfumato.schedulers.k_diffusion",
    "sfumato.runtime.environment",
    "sfumato.text.prompt",
    "sfumato.text.contexts",
    "sfumato.text.tokenizer",
    "sfumato.checkpoints.metadata",
    "sfumato.checkpoints.exif",
    "sfumato.checkpoints.picture_files",
    "sfumato.checkpoints.png",
    "sfumato.cli",
    "sfumato.cli.generate",
    "sfumato.cli.prompting",
    "sfumato.cli.request",
    "sfumato.cli.saving",
    "sfumato.cli.pictures",
    "sfumato.cli.picture_options",
    "sfumato.cli.info",
    "sfumato.cli.samplers",
    "sfumato.cli.doctor",
    "sfumato.cli.jax_drawing",
    "sfumato.cli.openvino_drawing",
    "sfumato.runtime.engines",
    "sfumato.cli.train",
)
ORACLES = {"diffusers", "transformers", "peft", "accelerate", "k_diffusion", "compel"}
NETWORK = {"http", "urllib", "requests", "httpx", "socket", "huggingface_hub"}
FILES = {"os", "io", "json", "pathlib", "shutil", "tempfile", "safetensors", "PIL"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports, without what is for type checkers alone."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(inner for child in node.body for inner in ast.walk(child))
        elif node not in skipped and isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported_by(node)


def imported_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def called(path: Path) -> set[str]:
    return {ast.unparse(n.func) for n in ast.walk(parsed(path)) if isinstance(n, ast.Call)}


def test_every_file_is_at_most_500_lines() -> None:
    lines = {relative(path): path.read_text("utf-8").count("\n") for path in OURS}
    assert {name: count for name, count in lines.items() if count > 500} == {}


def test_every_file_says_its_place_in_the_first_line() -> None:
    docstrings = {relative(path): ast.get_docstring(parsed(path)) or "" for path in OURS}
    assert [name for name, text in docstrings.items() if len(text) < 15] == []


def test_the_package_imports_no_oracle() -> None:
    assert {relative(path) for path in MODULES if packages(path) & ORACLES} == set()


@pytest.mark.parametrize("name", TORCH_FREE)
def test_a_module_above_the_wall_imports_no_torch_at_its_top(name: str) -> None:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    at_top = [name for node in parsed(source).body for name in imported_by(node)]
    assert [name for name in at_top if name.startswith("torch")] == []


def test_all_of_them_together_load_no_torch_either() -> None:
    code = f"import sys, {', '.join(TORCH_FREE)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_prompt_the_schedule_and_the_samplers_know_no_torch() -> None:
    paths = [PACKAGE / "diffusion" / "schedule.py", *PACKAGE.glob("diffusion/samplers/*.py")]
    assert len(paths) > 3
    prompt = list(PACKAGE.glob("text/prompt/*.py"))
    assert len(prompt) > 3
    for path in [*paths, *prompt]:
        assert "torch" not in packages(path), relative(path)


def test_the_networks_open_no_file() -> None:
    for path in PACKAGE.glob("models/**/*.py"):
        names = set(imports(path)) - {"os.PathLike"}  # a type
        assert not {name.split(".")[0] for name in names} & (FILES | NETWORK), relative(path)
        assert not called(path) & {"open", "torch.load", "torch.save"}, relative(path)


def test_the_network_is_reached_for_hub_names_alone() -> None:
    allowed = {"checkpoints/hub.py"}
    for path in MODULES:
        names = {name for name in imports(path) if not name.startswith("urllib.parse")}
        reached = {name.split(".")[0] for name in names} & NETWORK
        assert not reached or path.relative_to(PACKAGE).as_posix() in allowed, relative(path)


def test_nothing_evaluates_text_or_unpickles_it() -> None:
    forbidden = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "os.system"}
    for path in MODULES:
        assert not called(path) & forbidden, relative(path)
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = [ast.unparse(k.value) for k in node.keywords if k.arg == "weights_only"]
                assert safe == ["True"], relative(path)


def test_nothing_that_draws_touches_the_global_generator() -> None:
    for path in MODULES:
        if path.parent.name != "training":  # where weights begin as torch initialises them
            seeding = {"torch.manual_seed", "torch.seed", "random.seed", "np.random.seed"}
            assert not called(path) & seeding, relative(path)


# -- pins --------------------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in rows}


def test_every_line_of_the_constraints_is_a_pin_and_names_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "\n-" not in text
    assert next(iter(pins())) == "torch"
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9-]+", name) and re.fullmatch(r"[0-9][0-9a-z.]*", version)


def test_everything_that_the_tests_need_is_pinned() -> None:
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    for group in PROJECT["optional-dependencies"].values():
        wanted += [Requirement(text) for text in group]
    missing, seen = set(), {"sfumato"}
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        missing |= set() if name in pins() else {name}
        try:
            needed = map(Requirement, metadata.requires(name) or [])
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        extras = requirement.extras or {""}
        wanted += [
            r
            for r in needed
            if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    ours = {name for name in missing if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert not ours


def test_the_pins_are_what_the_project_asks_for() -> None:
    groups = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for group in groups.values() for text in group)]:
        requirement = Requirement(text)
        if requirement.name != "sfumato":
            pinned = pins()[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pinned), text


# -- texts -------------------------------------------------------------------------------------


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def test_no_text_names_a_place_on_the_machine_it_was_written_on() -> None:
    pattern = re.compile(r"/(?:work|tmp/w|root|home/\w+)/")
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json", "") and path.is_file():
            text = path.read_text("utf-8", "replace")
            found = pattern.search(text.replace(pattern.pattern, ""))
            assert found is None, f"{relative(path)}: {found and found[0]}"


@pytest.mark.parametrize("name", ["scripts/check", "scripts/test", "scripts/figures", ".ci/run"])
def test_the_scripts_can_be_run(name: str) -> None:
    path = ROOT / name
    assert path.stat().st_mode & 0o111
    first = path.read_text().splitlines()[0]
    assert first.startswith("#!/usr/bin/env ")
    if "bash" in first:
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_figures_count_every_file_of_the_package() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "figures"), "src"],
        capture_output=True,
        text=True,
        check=True,
    )
    cells = [cell.strip() for cell in done.stdout.splitlines()[2].split("|")]
    sizes = [path.stat().st_size for path in PACKAGE.rglob("*.py")]
    assert cells[1:3] == ["src", str(sum(size > 0 for size in sizes))]


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
