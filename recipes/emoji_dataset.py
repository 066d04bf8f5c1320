"""Build the embedded model's training set: emoji of four openly licensed sets, with captions.

    python recipes/emoji_dataset.py --out data/emoji --size 128

writes an image folder (`images/*.png` and `metadata.jsonl`) that `sfumato train` reads. The icons
and their names come from npm packages of pinned versions, fetched by `npm pack` and checked against
the SHA-512 written here; `--tarballs DIR` takes packages that are already there. Which entries are
left out, and how the captions are written, is in `emoji_words.py`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import multiprocessing
import random
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emoji_words import (
    ALSO_CALLED,
    STYLES,
    Thing,
    captions_for,
    fold,
    indefinite,
    is_drawable,
    natural_name,
)

# ---------------------------------------------------------------------------------------------
# Packages


@dataclass(frozen=True)
class Package:
    """One npm package: name, pinned version, and the SHA-512 of its tarball in base64."""

    name: str
    version: str
    sha512: str

    @property
    def filename(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NAMES = "emojibase-data"
ICON_CODEPOINTS = "@iconify-json/fluent-emoji-flat"
"""`fluent-emoji` ships no codepoints of its own; it uses the icon names of its flat sister."""

PACKAGES = (
    Package(
        NAMES,
        "17.0.0",
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
)


def fetch(package: Package, folder: Path) -> Path:
    """The package's tarball in `folder`, packed from the registry when it is not there yet."""
    path = folder / package.filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        try:
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"`{' '.join(command)}` failed: {error}. Put {package.filename} into {folder} "
                "by another way, or name a folder that has it with --tarballs."
            ) from error
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise SystemExit(
            f"{path} is not {package.name} {package.version}: its SHA-512 differs. "
            "Delete the file and run this again."
        )
    return path


def read_json(tarball: Path, member: str) -> Any:
    """One JSON file out of an npm tarball."""
    with tarfile.open(tarball) as archive:
        file = archive.extractfile(f"package/{member}")
        assert file is not None, f"{tarball} has no {member}"
        return json.load(file)


# ---------------------------------------------------------------------------------------------
# Things and their icons


def plain_hexcode(hexcode: str) -> str:
    """A codepoint sequence in one spelling: lower case, no variation selector, no leading zeros.

    >>> plain_hexcode("0023-FE0F-20E3")
    '23-20e3'
    """
    parts = [part.lstrip("0") for part in hexcode.lower().split("-")]
    return "-".join(part for part in parts if part != "fe0f")


def read_things(
    entries: Sequence[Mapping[str, Any]],
    shortcodes: Mapping[str, str | list[str]],
    groups: Mapping[str, str],
) -> list[Thing]:
    """The drawable entries of emojibase in their order, named, with names that are theirs alone."""
    drawable = [entry for entry in entries if is_drawable(entry)]
    names = [natural_name(entry["label"], entry.get("subgroup")) for entry in drawable]
    taken = {name.lower() for name in names}
    other_names = [_other_names(entry, shortcodes) for entry in drawable]
    uses = Counter(alias for aliases in other_names for alias in aliases)
    things: dict[str, Thing] = {}
    for entry, name, aliases in zip(drawable, names, other_names, strict=True):
        own = [alias for alias in aliases if alias not in taken and uses[alias] == 1]
        thing = Thing(
            hexcode=plain_hexcode(entry["hexcode"]),
            name=name,
            aliases=tuple(own),
            tags=tuple(tag for tag in map(fold, entry.get("tags", ())) if _is_words(tag)),
            group=groups[str(entry["group"])],
        )
        things.setdefault(name.lower(), thing)
    return list(things.values())


def _other_names(entry: Mapping[str, Any], shortcodes: Mapping[str, str | list[str]]) -> list[str]:
    codes = shortcodes.get(entry["hexcode"], [])
    codes = [codes] if isinstance(codes, str) else codes
    label = fold(entry["label"])
    codes = [code.replace("_", " ") for code in codes if not re.fullmatch(r"ja_.*|[a-z]+ing", code)]
    candidates = [*ALSO_CALLED.get(label, ()), label, *codes]
    return list(dict.fromkeys(text.lower() for text in candidates if _is_words(text)))


def _is_words(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z][A-Za-z' -]+", text) is not None


@dataclass(frozen=True)
class IconSet:
    """The icons of one package, found by codepoint."""

    data: Mapping[str, Any]
    icon_names: Mapping[str, str]
    """Plain codepoint sequence to icon name."""

    def svg(self, hexcode: str, inset: float = 0.0) -> str | None:
        """The icon as an SVG document with a margin, or None when the set has no such icon."""
        name = self.icon_names.get(hexcode)
        return icon_svg(self.data, name, inset) if name else None


def icon_svg(data: Mapping[str, Any], name: str, inset: float = 0.0) -> str | None:
    """An icon of iconify's JSON as an SVG document; aliases and their flips are followed."""
    flips: list[str] = []
    while name not in data["icons"]:
        alias = data.get("aliases", {}).get(name)
        if alias is None or alias.get("rotate"):
            return None
        flips += [flip for flip in ("hFlip", "vFlip") if alias.get(flip)]
        name = alias["parent"]
    icon = data["icons"][name]
    width, height = (icon.get(side, data.get(side, 16)) for side in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    body = icon["body"]
    for flip in flips:
        move = (
            f"translate({2 * left + width} 0) scale(-1 1)"
            if flip == "hFlip"
            else f"translate(0 {2 * top + height}) scale(1 -1)"
        )
        body = f'<g transform="{move}">{body}</g>'
    dx, dy = inset * width, inset * height
    box = f"{left - dx:g} {top - dy:g} {width + 2 * dx:g} {height + 2 * dy:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{body}</svg>'
    )


# ---------------------------------------------------------------------------------------------
# Drawing and writing


def draw(job: tuple[str, Path, int]) -> None:
    """Render one SVG on white to a square RGB PNG."""
    import resvg_py
    from PIL import Image

    svg, path, size = job
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff")
    with Image.open(io.BytesIO(bytes(png))) as image:
        canvas = Image.new("RGB", (size, size), "white")
        canvas.paste(image.convert("RGB"), ((size - image.width) // 2, (size - image.height) // 2))
    canvas.save(path)


def rows_and_jobs(
    things: Sequence[Thing], sets: Mapping[str, IconSet], out: Path, size: int, seed: int
) -> tuple[list[dict[str, Any]], list[tuple[str, Path, int]]]:
    """One metadata row and one drawing job for each picture of a thing that all sets know."""
    rows: list[dict[str, Any]] = []
    jobs: list[tuple[str, Path, int]] = []
    for thing in things:
        svgs = {style: sets[style.package].svg(thing.hexcode, style.inset) for style in STYLES}
        for style, svg in svgs.items():
            if svg is None or None in svgs.values():
                continue
            slug = re.sub(r"[^a-z0-9]+", "-", thing.name.lower()).strip("-")
            file_name = f"images/{slug}--{style.word}.png"
            captions = captions_for(thing, style, seed)
            rows.append(
                {
                    "file_name": file_name,
                    "text": captions[0],
                    "captions": captions,
                    "label": thing.name,
                    "style": style.word,
                    "hexcode": thing.hexcode,
                    "group": thing.group,
                    "license": style.license,
                    "source": style.package,
                }
            )
            jobs.append((svg, out / file_name, size))
    return rows, jobs


def load(tarballs: Path) -> tuple[list[Thing], dict[str, IconSet]]:
    """Every thing and the four icon sets, from the packages in `tarballs`."""
    paths = {package.name: fetch(package, tarballs) for package in PACKAGES}
    things = read_things(
        read_json(paths[NAMES], "en/data.json"),
        read_json(paths[NAMES], "en/shortcodes/emojibase.json"),
        read_json(paths[NAMES], "meta/groups.json")["groups"],
    )
    sets = {}
    for style in STYLES:
        path = paths[style.package]
        codepoints = read_json(path, "chars.json") or read_json(
            paths[ICON_CODEPOINTS], "chars.json"
        )
        names = {plain_hexcode(code): name for code, name in codepoints.items()}
        sets[style.package] = IconSet(read_json(path, "icons.json"), names)
    return things, sets


def sample_prompts(labels: Sequence[str], per_style: int, seed: int) -> list[str]:
    """Prompts drawn by chance, `per_style` for each style, no thing twice."""
    drawn = random.Random(seed).sample(sorted(labels), per_style * len(STYLES))
    return [
        f"{indefinite(label)}, {STYLES[index // per_style].word} style"
        for index, label in enumerate(drawn)
    ]


def build(out: Path, tarballs: Path, size: int, seed: int, workers: int) -> Counter[str]:
    """Write the whole image folder and return the number of pictures in each style."""
    things, sets = load(tarballs)
    rows, jobs = rows_and_jobs(things, sets, out, size, seed)
    (out / "images").mkdir(parents=True, exist_ok=True)
    if workers > 1:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            pool.map(draw, jobs, chunksize=32)
    else:
        for job in jobs:
            draw(job)
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for style in STYLES:
        missing = [t.name for t in things if sets[style.package].svg(t.hexcode) is None]
        print(f"{style.package}: {len(missing)} of {len(things)} things missing", file=sys.stderr)
    return Counter(row["style"] for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the emoji image folder.")
    parser.add_argument("--out", type=Path, default=Path("data/emoji"), help="image folder")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the captions' variety")
    parser.add_argument("--workers", type=int, default=2, help="drawing processes")
    parser.add_argument(
        "--tarballs", type=Path, default=Path("data/npm"), help="folder of the npm packages"
    )
    parser.add_argument(
        "--sample-prompts",
        type=int,
        metavar="N",
        help="print N prompts for each style, drawn by --seed, instead of building",
    )
    options = parser.parse_args(argv)
    if options.sample_prompts:
        things, sets = load(options.tarballs)
        rows, _ = rows_and_jobs(things, sets, options.out, options.size, options.seed)
        labels = {row["label"] for row in rows}
        print("\n".join(sample_prompts(list(labels), options.sample_prompts, options.seed)))
        return
    counts = build(options.out, options.tarballs, options.size, options.seed, options.workers)
    print(f"{counts.total()} pictures of {max(counts.values())} things: {dict(counts)}")


if __name__ == "__main__":
    main()
