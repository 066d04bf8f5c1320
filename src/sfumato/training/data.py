"""Training pictures: a folder with ``metadata.jsonl``, read in an order fixed by seed and step.

The layout is the `imagefolder` convention: every line of ``metadata.jsonl`` is an object with
``file_name`` and a caption under ``text``, or several under ``captions``. Nothing here holds a
cursor: the indices of step ``k`` follow from the seed and ``k`` alone, so a resumed run reads on
exactly where a killed one stopped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfumato.errors import DatasetError

logger = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000  # a decompression bomb is refused from its header, before decoding
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
MAX_LINE = 1_000_000  # characters in one line of metadata.jsonl


@dataclass(frozen=True, slots=True)
class Example:
    """One training picture and the sentences that describe it (at least one)."""

    path: Path
    captions: tuple[str, ...]


def read_folder(root: Path, *, max_bad_share: float = 0.01) -> list[Example]:
    """The examples of a folder in the order of its ``metadata.jsonl``.

    Lines whose picture is missing, unreadable or without a caption are skipped with one counted
    warning, up to ``max_bad_share`` of the lines. Only headers of pictures are read here.

    Raises:
        DatasetError: no ``metadata.jsonl``, a line that is no JSON object, a file name that
            leaves the folder, too many bad lines, or nothing left.
    """
    index = root / "metadata.jsonl"
    if not index.is_file():
        raise DatasetError(
            f"'{root}' has no metadata.jsonl.",
            hint='Write one line per picture: {"file_name": "a.png", "text": "a red apple"}.',
        )
    examples: list[Example] = []
    problems: list[str] = []
    seen: set[Path] = set()
    lines = index.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        example = _parse_line(root, number, line)
        problem = "duplicate file name" if example.path in seen else _problem(example)
        if problem:
            problems.append(f"line {number}: {example.path.name}: {problem}")
            continue
        seen.add(example.path)
        examples.append(example)
    _report(root, len(examples), problems, max_bad_share)
    return examples


def read_pictures(root: Path, *, max_bad_share: float = 0.01) -> list[Example]:
    """The pictures of a folder for training without captions, which they may lack.

    Without a ``metadata.jsonl`` these are all files whose names end like a picture's.

    Raises:
        DatasetError: as in `read_folder`.
    """
    if (root / "metadata.jsonl").is_file():
        return read_folder(root, max_bad_share=max_bad_share)
    if not root.is_dir():
        raise DatasetError(f"'{root}' is no folder.")
    found = [Example(p, ()) for p in sorted(root.iterdir()) if p.suffix.lower() in SUFFIXES]
    checked = [(example, _damage(example.path)) for example in found]
    examples = [example for example, problem in checked if problem is None]
    problems = [f"{example.path.name}: {problem}" for example, problem in checked if problem]
    _report(root, len(examples), problems, max_bad_share)
    return examples


def read_classes(root: Path, *, max_bad_share: float = 0.01) -> list[Example]:
    """The pictures of a folder with the name of a class as the caption of each.

    That is the first caption in ``metadata.jsonl``; without one, the folder that a picture is in.

    Raises:
        DatasetError: as in `read_folder`.
    """
    if (root / "metadata.jsonl").is_file():
        return read_folder(root, max_bad_share=max_bad_share)
    if not root.is_dir():
        raise DatasetError(f"'{root}' is no folder.")
    files = [path for path in sorted(root.glob("*/*")) if path.suffix.lower() in SUFFIXES]
    checked = [(Example(path, (path.parent.name,)), _damage(path)) for path in files]
    examples = [example for example, problem in checked if problem is None]
    problems = [f"{example.path.name}: {problem}" for example, problem in checked if problem]
    _report(root, len(examples), problems, max_bad_share)
    return examples


def _report(root: Path, usable: int, problems: Sequence[str], max_bad_share: float) -> None:
    """Warn of pictures that are skipped, or raise `DatasetError` when they are too many."""
    total = usable + len(problems)
    if problems:
        logger.warning("%d of %d pictures skipped; first: %s", len(problems), total, problems[0])
    if not usable or len(problems) > max_bad_share * total:
        raise DatasetError(
            f"'{root}': {len(problems)} of {total} pictures cannot be used, more than "
            f"{max_bad_share:.0%}. First: {'; '.join(problems[:5]) or 'there are none'}.",
            hint="Mend or remove these pictures, or their lines.",
        )


def _parse_line(root: Path, number: int, line: str) -> Example:
    where = f"metadata.jsonl, line {number}"
    try:
        entry = json.loads(line) if len(line) <= MAX_LINE else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise DatasetError(f"{where}: not a JSON object with a `file_name`.")
    path = root / entry["file_name"]
    if not path.resolve().is_relative_to(root.resolve()):
        raise DatasetError(f"{where}: `file_name` leaves the folder: {entry['file_name'][:80]!r}.")
    captions = entry.get("captions") or [entry.get("text")]
    if not isinstance(captions, list):
        raise DatasetError(f"{where}: `captions` has to be a list of strings.")
    return Example(path, tuple(c for c in captions if isinstance(c, str) and c.strip()))


def _problem(example: Example) -> str | None:
    """Why a picture cannot be used, from its header alone; None when it can."""
    return _damage(example.path) if example.captions else "no caption"


def _damage(path: Path) -> str | None:
    """Why a file cannot be used as a picture, from its header alone; None when it can."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width}x{image.height} is over {MAX_PIXELS} pixels"
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return str(error)[:120]
    return None


def load_picture(path: Path, size: int) -> torch.Tensor:
    """A square picture as float32 ``(3, size, size)`` in [-1, 1].

    Transparent pixels become white; other shapes are cropped around the centre.

    Raises:
        DatasetError: the picture cannot be decoded.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGBA")
    except (OSError, ValueError) as error:
        raise DatasetError(f"'{path.name}' cannot be decoded: {error}") from error
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    side = min(flat.size)
    left, top = (flat.width - side) // 2, (flat.height - side) // 2
    square = flat.convert("RGB").crop((left, top, left + side, top + side))
    if side != size:
        square = square.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.array(square, dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1.0


def load_pictures(examples: Sequence[Example], size: int) -> torch.Tensor:
    """Several pictures as float32 ``(n, 3, size, size)`` in [-1, 1]."""
    return torch.stack([load_picture(example.path, size) for example in examples])


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Which examples step ``step`` (from 0) sees: int64 ``(batch_size,)``.

    Every epoch is a fresh permutation; a batch may end one epoch and begin the next.

    >>> [int(i) for step in range(2) for i in sorted(batch_indices(4, 2, step, seed=1))] == [
    ...     *sorted(batch_indices(4, 2, 0, seed=1)), *sorted(batch_indices(4, 2, 1, seed=1))]
    True
    >>> sorted(int(i) for step in range(2) for i in batch_indices(4, 2, step, seed=1))
    [0, 1, 2, 3]
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_permutation(count, int(p // count), seed)[p % count] for p in positions])


@lru_cache(maxsize=4)
def _permutation(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random source of one training step, a pure function of the seed and the step."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
