"""The command: feed hostile prompts to every grammar and through the metadata of pictures.

    python -m tests.fuzz.prompts --characters 10000000 --seed 0

First each hostile text with a million characters, alone: reading it may not take much more than
four times as long as a quarter of it. Then random ones, up to the number of characters. Ends with
an error when a reader fails, an answer is out of its bounds, or a recipe comes back changed.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

from PIL import Image

from sfumato.checkpoints.metadata import Recipe, parse_infotext, to_infotext
from sfumato.checkpoints.picture_files import read_recipe
from sfumato.checkpoints.png import encode_png
from sfumato.text.prompt.attention import LARGEST_WEIGHT, parse_attention
from sfumato.text.prompt.chunks import Vocabulary, a1111_chunks, comfyui_chunks
from sfumato.text.prompt.comfyui import parse_comfyui
from sfumato.text.prompt.composition import split_parts
from sfumato.text.prompt.schedule import parse_script
from sfumato.text.prompt.tags import take_tags

HOSTILE: dict[str, Callable[[int], str]] = {
    "open round": lambda n: "(" * n,
    "open square": lambda n: "[" * n,
    "closed round": lambda n: ")" * n,
    "closed square": lambda n: "]" * n,
    "nested round": lambda n: "(" * (n // 2) + ")" * (n // 2),
    "nested square": lambda n: "[" * (n // 2) + "]" * (n // 2),
    "nested weights": lambda n: "(" * (n // 5) + "a" + ":2.)" * (n // 5),
    "nested switches": lambda n: "[a:" * (n // 6) + "b" + ":3]" * (n // 6),
    "nested turns": lambda n: "[a|" * (n // 4) + "b" + "]" * (n // 4),
    "crossing": lambda n: "([" * (n // 4) + ")]" * (n // 4),
    "colons": lambda n: ":" * n,
    "colons in a bracket": lambda n: "[" + ":" * n + "3]",
    "pipes": lambda n: "|" * n,
    "pipes in a bracket": lambda n: "[" + "|" * n + "]",
    "colon and spaces": lambda n: ": " * (n // 2),
    "one colon, many spaces": lambda n: "(a:" + " " * n + "1)",
    "digits": lambda n: "(a:" + "1" * n + ")",
    "dots": lambda n: "[a:" + "." * n + "]",
    "backslashes": lambda n: "\\" * n,
    "escapes": lambda n: "\\(\\[" * (n // 4),
    "spaces": lambda n: " " * n,
    "breaks": lambda n: "BREAK " * (n // 6),
    "nearly breaks": lambda n: (" " * (n // 16) + "BREA") * 16,
    "ands": lambda n: " AND" * (n // 4),
    "and, colons": lambda n: "a AND " + ": 1 " * (n // 4),
    "tags": lambda n: "<lora:a:1>" * (n // 10),
    "open tags": lambda n: "<lora:" * (n // 6),
    "empty tags": lambda n: "<lora:>" * (n // 7),
    "angles": lambda n: "<" * n,
    "one word": lambda n: "a" * n,
    "commas": lambda n: "a," * (n // 2),
}

#: What random prompts are made of.
PIECES = [
    *"()[]:|\\,<> ab1.\n", "BREAK", " AND ", ":1.2)", ":.5]", "[a|", "é", "\0", "a red cat, " * 20,
    "\t \n" * 50, "12345.67890" * 20, "a:b;c " * 30, "<lora:a:0.5>", "Steps: 1, ", '"', "\ud83d",
]  # fmt: skip
#: How many letters the prompt of a recipe may have, with some room for what is beside it.
ROOM = 900_000


def some_letters(text: str) -> list[int]:
    """A tokenizer for which every twentieth letter is a token."""
    return [ord(letter) for letter in text[::20]]


VOCABULARY = Vocabulary(some_letters, begin=-1, end=-2, pad=-2, comma=ord(","), several={})


def read_in_all_ways(text: str) -> None:
    """Tags, parts, steps, the weights and windows of both grammars; and as a line of a recipe."""
    parse_infotext(text[:ROOM].replace("\n", " "))
    rest, _ = take_tags(text)
    for part in split_parts(rest):
        assert abs(part.weight) <= LARGEST_WEIGHT
    script = parse_script(text)
    assert len(script.at(3, 20)) <= len(text)
    for phrases, chunks in (
        (parse_attention(text), a1111_chunks),
        (parse_comfyui(text), comfyui_chunks),
    ):
        assert all(abs(phrase.weight) <= LARGEST_WEIGHT for phrase in phrases)
        assert all(len(chunk.ids) == 77 for chunk in chunks(phrases, VOCABULARY))


def goes_round(text: str, folder: Path) -> None:
    """Write a picture with the prompt in it, and read both forms of its recipe again."""
    text = text[:ROOM]
    recipe = Recipe(
        prompt=text, negative_prompt=text[:1000], steps=5, seed=3, sampler="Euler", cfg_scale=7.5
    )
    path = folder / "picture.png"
    path.write_bytes(encode_png(Image.new("RGB", (1, 1)), recipe))
    assert read_recipe(path) == recipe
    again = parse_infotext(to_infotext(recipe))
    assert (again.prompt, again.negative_prompt) == (recipe.prompt, recipe.negative_prompt)


def random_prompts(seed: int, characters: int) -> Iterator[str]:
    """Random prompts of so many characters in all, and a few more."""
    rng = random.Random(seed)
    while characters > 0:
        text = "".join(rng.choices(PIECES, k=rng.choice([10, 1_000, 20_000])))
        characters -= len(text)
        yield text


def seconds(text: str) -> float:
    """Of the processor, to read a prompt in all ways."""
    begun = time.process_time()
    read_in_all_ways(text)
    return time.process_time() - begun


def growth(make: Callable[[int], str], length: int) -> tuple[float, float]:
    """Seconds for a hostile text of this length, and how many times those of a quarter of it."""
    quarter = min(seconds(make(length // 4)) for _ in range(2))
    whole = min(seconds(make(length)) for _ in range(2))
    return whole, whole / max(quarter, 0.02)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.prompts", description=__doc__)
    parser.add_argument("--characters", type=int, default=10_000_000, help="of random prompts")
    parser.add_argument("--length", type=int, default=1_000_000, help="of each hostile prompt")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("sfumato").setLevel(logging.ERROR)  # of unknown tags
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for hostile, make in HOSTILE.items():
            whole, times = growth(make, options.length)
            if times >= 10:  # the machine may have been busy
                whole, times = min(growth(make, options.length), (whole, times), key=itemgetter(1))
            figures = f"{whole:7.2f} s, {times:.1f} times those of a quarter"
            print(f"{hostile:24}{options.length:9} characters {figures}", flush=True)
            assert times < 10, f"{hostile} takes more than linear time"
            goes_round(make(options.length), folder)
        total = count = 0
        begun = time.process_time()
        for text in random_prompts(options.seed, options.characters):
            read_in_all_ways(text)
            goes_round(text, folder)
            total, count = total + len(text), count + 1
        spent = time.process_time() - begun
    print(f"{count} random prompts, {total} characters, {spent:.0f} s; failures: 0")


if __name__ == "__main__":
    main()
