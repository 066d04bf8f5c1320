"""Damaged caches of the hub: a file says what to do to a sound one, which then is read offline."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from functools import cache as remembered
from pathlib import Path
from typing import Any

from sfumato.pipelines.stable_diffusion import StableDiffusionPipeline
from sfumato.schedulers import PNDMScheduler
from sfumato.text.tokenizer import CLIPTokenizer
from tests.fuzz import texts

NAME, COMMIT = "someone/model", "0123456789abcdef" * 2 + "01234567"
FOLDER = "models--someone--model"
_LINK, _GONE, _FOLDER, _TEXT = "link", "gone", "folder", "text"

_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": [None, None],
    "text_encoder": [None, None],
    "safety_checker": [None, None],
}


@remembered
def _sound() -> Mapping[str, bytes]:
    """The cache's files without damage."""
    snapshot = f"{FOLDER}/snapshots/{COMMIT}"
    files = {f"{snapshot}/{name}": content for name, content in texts.folder().items()}
    files |= {f"{snapshot}/tokenizer/{name}": data for name, data in texts.tokenizer().items()}
    return {
        **files,
        f"{snapshot}/model_index.json": json.dumps(_INDEX).encode(),
        f"{FOLDER}/refs/main": COMMIT.encode(),
    }


def damage(r: random.Random) -> bytes:
    """What to do to the files: a list of paths, and of what is in their place."""
    folders = {f"{FOLDER}/{part}" for part in ("refs", "snapshots", f"snapshots/{COMMIT}", "")}
    paths = [*sorted(_sound()), *sorted(folders), f"{FOLDER}/refs/main"]
    wishes: list[list[str]] = []
    for _ in range(r.choice([0, 1, 1, 2, 3])):
        path = r.choice([*paths, *[f"{FOLDER}/refs/main"] * len(paths)])
        match r.randrange(4):
            case 0:
                wishes.append([path, _GONE, ""])
            case 1:
                aims = ["../" * 9 + "nowhere", ".", "..", Path(path).name, "/dev/zero", "/dev/null"]
                wishes.append([path, _LINK, r.choice(aims)])
            case 2:
                wishes.append([path, _FOLDER, ""])
            case _:
                wishes.append([path, _TEXT, r.choice(_TEXTS)])
    return json.dumps({"reader": r.choice([0, 0, 0, 1, 1, 2]), "wishes": wishes}).encode()


_TEXTS = (
    "", "main", COMMIT + "\n", COMMIT.upper(), COMMIT[:7], "../../..", f"../{COMMIT}", "f" * 40,
    "/etc", "\0" * 40, COMMIT * 1000, "é" * 40, "{}", "[]", "{", "null", "[" * 2000, " " * 40,
)  # fmt: skip


def arrange(path: Path) -> None:
    """Make the cache that a file tells of, beside it."""
    place = path.parent / "cache"
    shutil.rmtree(place, ignore_errors=True)
    for name, content in _sound().items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for name, kind, text in json.loads(path.read_bytes())["wishes"]:
        _do(place, place / name, kind, text)


def _do(place: Path, path: Path, kind: str, text: str) -> None:
    """One wish; nothing is written through a link that an earlier one made."""
    if any(parent.is_symlink() or parent.is_file() for parent in _parents(place, path)):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == _LINK:
        path.symlink_to(text)
    elif kind == _FOLDER:
        path.mkdir()
    elif kind == _TEXT:
        path.write_text(text)


def _parents(place: Path, path: Path) -> list[Path]:
    return [parent for parent in path.parents if place in parent.parents]


def read(path: Path) -> None:
    """Load from the cache, without a network."""
    reader = json.loads(path.read_bytes())["reader"]
    _READERS[reader](cache_dir=path.parent / "cache", local_files_only=True)


def _scheduler(**options: Any) -> None:
    PNDMScheduler.from_pretrained(NAME, subfolder="scheduler", **options)


def _tokenizer(**options: Any) -> None:
    CLIPTokenizer.from_pretrained(NAME, subfolder="tokenizer", **options)


def _pipeline(**options: Any) -> None:
    StableDiffusionPipeline.from_pretrained(NAME, **options)


_READERS: tuple[Callable[..., None], ...] = (_scheduler, _tokenizer, _pipeline)
