"""Options that show a drawing on its way, as a small picture in a file that is written anew."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.checkpoints.atomic import write_file_atomically
from sfumato.checkpoints.files import shown
from sfumato.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_Option = partial(typer.Option, show_envvar=False)

PreviewPath = Annotated[
    Path | None,
    _Option(
        "--preview",
        "--preview-path",
        metavar="PNG",
        help="Small picture to write anew while drawing.",
    ),
]
PreviewInterval = Annotated[
    int, _Option("--preview-interval", metavar="N", min=1, max=1000, help="Every so many steps.")
]

#: The longer side of what is written.
_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Where to show drawings, and how often."""

    path: Path
    every: int

    def callback(self) -> Any:
        """What a pipeline is to call at the end of each step."""
        from sfumato.pipelines.previews import PreviewCallback

        return PreviewCallback(self._show, self.every)

    def _show(self, pictures: list[Image], done: int, total: int) -> None:
        picture = pictures[0]
        factor = _SIDE / max(picture.size)
        width, height = (max(1, round(side * factor)) for side in picture.size)
        written = io.BytesIO()
        picture.resize((width, height)).save(written, format="PNG")
        write_file_atomically(self.path, written.getvalue())


def read_preview(path: Path | None, every: int) -> Preview | None:
    """What the options ask for; None without a file.

    Raises:
        InputError: the file cannot be one.
    """
    if path is None:
        return None
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"--preview writes a PNG file, which {shown(path)} cannot be.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {shown(path.parent)} for --preview.")
    return Preview(path=path, every=every)
