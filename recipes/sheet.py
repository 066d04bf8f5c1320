"""Draw a list of prompts on one labelled contact sheet.

    python recipes/sheet.py --out sheet.png                      # the embedded model
    python recipes/sheet.py --model runs/emoji/model --out sheet.png

The prompts are the lines of `prompts-48.txt`: 12 things in each of the four styles, drawn by chance
(`emoji_dataset.py --sample-prompts 12`) and never chosen by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from drawing import add_draw_arguments, draw_all, draw_options, load_pipeline
from PIL import Image, ImageDraw, ImageFont

PROMPTS = Path(__file__).parent / "prompts-48.txt"
FONT_SIZE, LINE_HEIGHT, LABEL_LINES, GAP = 11, 14, 3, 6


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are neither empty nor a `#` comment."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def contact_sheet(
    images: Sequence[Image.Image], labels: Sequence[str], columns: int
) -> Image.Image:
    """The pictures in rows of `columns`, each with its label below."""
    width, height = images[0].size
    cell = (width + GAP, height + LABEL_LINES * LINE_HEIGHT + GAP)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        left = GAP + index % columns * cell[0]
        top = GAP + index // columns * cell[1]
        sheet.paste(image, (left, top))
        for number, line in enumerate(wrap(label, width, font)[:LABEL_LINES]):
            x = left + (width - font.getlength(line)) / 2
            draw.text((x, top + height + number * LINE_HEIGHT), line, "#444444", font)
    return sheet


def wrap(text: str, width: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """`text` in lines that are at most `width` pixels wide (a single long word may be wider)."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw a labelled contact sheet of prompts.")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="text file, one a line")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="PNG to write")
    parser.add_argument("--columns", type=int, default=12, help="pictures in a row")
    add_draw_arguments(parser)
    parsed = parser.parse_args(argv)
    prompts = read_prompts(parsed.prompts)
    images = list(draw_all(load_pipeline(parsed.model), prompts, draw_options(parsed)))
    contact_sheet(images, prompts, parsed.columns).save(parsed.out)
    print(parsed.out)


if __name__ == "__main__":
    main()
