"""Every code block of the README and of docs/ is run; the help page is up to date."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save

from sfumato import assets
from sfumato.cli import COMMANDS
from tests.checkpoints.hub_server import files_below, lay_out
from tests.command import Run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TESTS = "pytest -n 2 --dist loadfile"
HAS_MODEL = (ROOT / "src" / "sfumato" / "assets" / "model" / "model_index.json").is_file()


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S)
    return [Block(language, text) for language, text in found]


@pytest.fixture
def package(model: Path, request: pytest.FixtureRequest) -> Path:
    """The embedded model; a tiny one in its place where the checkout has none."""
    return assets.embedded_model_path() if HAS_MODEL else request.getfixturevalue("embedded")


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with what the pages load by name from a hub, which is not asked."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    files = files_below(model)
    half = {k.replace(".safet", ".fp16.safet"): v for k, v in files.items() if ".safet" in k}
    vae = {"vae/dream.safetensors": files["vae/diffusion_pytorch_model.safetensors"]}
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    lora = {f"{layer}.lora_down.weight": torch.ones(2, 64, 1, 1)}
    lora |= {f"{layer}.lora_up.weight": torch.ones(64, 2, 1, 1)}
    word = {"<cat-toy>": torch.ones(32)}
    lay_out(cache, "stable-diffusion-v1-5/stable-diffusion-v1-5", files | half)
    lay_out(cache, "someone/ink-style", {"ink.safetensors": save(lora), "old.safetensors": b""})
    lay_out(cache, "sd-concepts-library/cat-toy", {"learned_embeds.safetensors": save(word)})
    lay_out(cache, "someone/dreams", vae)
    parts = {name: content for name, content in files.items() if name != "unet/config.json"}
    lay_out(cache, "someone/half-a-model", parts)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(
    page: Path, run: Run, package: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace: dict[str, Any] = {}
    for block in blocks(page):
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), namespace)
        elif block.language == "sh":
            for line in block.text.splitlines():
                run_line(line, run, model, monkeypatch)
        else:
            assert block.language == "text", f"no way to run {block.language!r} in {page.name}"


def run_line(line: str, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line of shell that is of a known form: pip, pytest, or sfumato with text piped in."""
    if line.startswith("pip install "):
        return check_installation(line)
    printed, _, command = line.rpartition(" | ")
    if printed:
        assert printed.startswith("printf ")
        text = subprocess.run(["bash", "-c", printed], capture_output=True, text=True, check=True)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text.stdout))
    program, *words = shlex.split(command)
    assert program == "sfumato", f"no way to run {line!r}"
    words = [str(model) if "/to/" in word else word for word in words]
    draws = words[0] not in COMMANDS and "--help" not in words
    if draws and "--steps" not in words and "--from" not in words:
        words += ["--steps", "2"]
    said = run(*words)
    assert said.code == 0, said.err
    if draws and "--json" not in words:
        assert all(Path(path).is_file() for path in said.out.splitlines())
    return None


def check_installation(line: str) -> None:
    """The command itself is run by CI; here, that what it names exists."""
    install, _, then = line.partition(" && ")
    assert then in ("", TESTS)
    words = shlex.split(install)
    assert words[:3] == ["pip", "install", "-c"] and (ROOT / words[3]).is_file()
    target = words[-1]
    assert (words[4:] == ["."]) or words[4:] == ["-e", target]
    extras = re.fullmatch(r"\.(?:\[(\w+)\])?", target)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras and (extras[1] is None or extras[1] in project["optional-dependencies"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        is_drawn = target.startswith("docs/images/")
        if not target.startswith("https://") and (HAS_MODEL or not is_drawn):
            assert (page.parent / target).exists(), target


def test_the_help_page_is_what_the_command_says() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "help-page"))
    shown = next(b.text for b in blocks(ROOT / "docs" / "command.md") if b.language == "text")
    assert shown.rstrip() == script["current_help"]().rstrip(), "run scripts/help-page"


def test_the_readme_begins_with_a_picture_and_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    first = 'pip install -c constraints.txt .\nsfumato "a red apple"\n'
    assert text.index("![") < text.index(first) < 800
    assert f"\npip install -c constraints.txt -e '.[test]' && {TESTS}\n" in text
    assert f"\n{TESTS} " in (ROOT / ".ci" / "run").read_text("utf-8")
