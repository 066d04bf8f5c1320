"""What the pictures of the emoji data set are called: names, articles, styles and captions.

First half of the data set recipe (`emoji_dataset.py` is the second): it decides which entries of
`emojibase-data` are worth drawing, turns their labels into names that people type ("automobile"
becomes "car"), and writes the captions. Text in, text out: no file and no picture is touched here.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# ---------------------------------------------------------------------------------------------
# Which entries are left out, and why


LEFT_OUT_GROUPS = {None: "regional indicators", 2: "skin and hair components", 9: "flags"}
"""Whole groups of emojibase: letters, parts of other pictures, and flags (a list of small
differences that a small model would blur)."""

LEFT_OUT_SUBGROUPS = {
    94: "keycaps",
    95: "letters and words on buttons",
    92: "currency signs",
    90: "single strokes of mathematics",
}

LEFT_OUT_LABELS = re.compile(
    r"""
      ^family:                                # 25 arrangements of the same silhouettes
    | ^(kiss|couple\ with\ heart):            # the general picture is kept
    | facing\ right$                          # mirror images of a picture that is kept
    | -thirty$                                # half hours: 12 clock faces are enough
    | \b(BACK|END|ON!|SOON|TOP)\ arrow$       # words, not things
    | ^(ATM\ sign|ZZZ|water\ closet|copyright|registered|trade\ mark|hundred\ points)$
    | ^(exclamation\ question\ mark|double\ exclamation\ mark|wavy\ dash)$
    | (medium|small)\ square$                 # the large squares are kept
    | ^small\ (orange|blue)\ diamond$         # the large diamonds are kept
    | ^(white|black)\ square\ button$
    """,
    re.VERBOSE,
)


def is_drawable(entry: Mapping[str, Any]) -> bool:
    """Whether an emojibase entry is a thing to draw (skin tones sit inside `skins`, so they
    are never entries of their own)."""
    return (
        entry.get("group") not in LEFT_OUT_GROUPS
        and entry.get("subgroup") not in LEFT_OUT_SUBGROUPS
        and not LEFT_OUT_LABELS.search(entry["label"])
    )


# ---------------------------------------------------------------------------------------------
# Names


RENAMED = {
    "automobile": "car",
    "oncoming automobile": "car from the front",
    "sport utility vehicle": "blue car",
    "articulated lorry": "truck",
    "mobile phone": "smartphone",
    "locked": "locked padlock",
    "unlocked": "open padlock",
    "locked with key": "padlock with key",
    "locked with pen": "padlock with pen",
    "droplet": "drop of water",
    "water wave": "ocean wave",
    "high voltage": "lightning bolt",
    "hot beverage": "cup of coffee",
    "steaming bowl": "bowl of noodles",
    "high-heeled shoe": "high heel shoe",
    "camping": "campsite",
    "foggy": "foggy city",
    "wedding": "wedding chapel",
    "construction": "construction barrier",
    "cooking": "fried egg in a pan",
    "sparkles": "golden sparkles",
    "dizzy": "dizzy star",
    "headphone": "headphones",
    "pick": "pickaxe",
    "shallow pan of food": "pan of paella",
    "hourglass done": "hourglass",
    "hourglass not done": "hourglass with flowing sand",
    "pool 8 ball": "billiard ball",
    "wireless": "wireless symbol",
    "cinema": "cinema symbol",
    "sake": "sake bottle and cup",
    "pile of poo": "poo",
    "mate": "mate drink",
    "cricket game": "cricket bat and ball",
    "field hockey": "field hockey stick and ball",
    "ice hockey": "ice hockey stick and puck",
    "lacrosse": "lacrosse stick",
    "ping pong": "ping pong paddle and ball",
    "badminton": "badminton racket and shuttlecock",
    "tennis": "tennis racket and ball",
    "bowling": "bowling ball and pins",
    "breast-feeding": "breast-feeding woman",
    "rolling on the floor laughing": "face rolling on the floor laughing",
    "head shaking horizontally": "face shaking horizontally",
    "head shaking vertically": "face nodding vertically",
    "star-struck": "star-struck face",
    "love-you gesture": "love-you hand gesture",
    "cricket": "cricket insect",
    "fly": "fly insect",
    "turkey": "turkey bird",
    "classical building": "greek temple",
    "passenger ship": "cruise ship",
    "doughnut": "donut",
    "flying saucer": "flying saucer ufo",
    "black large square": "black square",
    "white large square": "white square",
    "large orange diamond": "orange diamond",
    "large blue diamond": "blue diamond",
    "label": "price tag",
    "link": "chain link",
    "dna": "dna helix",
    "door": "wooden door",
    "kiss": "kissing couple",
    "couple with heart": "couple with a heart",
    "mouth": "mouth with lips",
    "litter in bin sign": "litter bin sign",
    "left luggage": "left luggage sign",
    "customs": "customs sign",
    "no bicycles": "no bicycles sign",
    "no pedestrians": "no pedestrians sign",
    "no mobile phones": "no mobile phones sign",
    "no smoking": "no smoking sign",
    "no littering": "no littering sign",
    "no entry": "no entry sign",
    "non-potable water": "non-potable water sign",
    "potable water": "potable water sign",
    "performing arts": "theater masks",
    "om": "om symbol",
    "oden": "oden skewer",
    "fondue": "fondue pot",
}
"""Labels that say little on their own, or that nobody types, with the name used in their place.
The label itself stays as a second name."""

ALSO_CALLED = {
    "red apple": ("apple",),
    "deciduous tree": ("tree",),
    "evergreen tree": ("pine tree",),
    "blossom": ("flower",),
    "red heart": ("heart",),
    "airplane": ("plane",),
    "desktop computer": ("computer",),
    "sailboat": ("boat",),
    "bicycle": ("bike",),
    "television": ("tv",),
    "closed book": ("book", "red book"),
    "lady beetle": ("ladybug",),
    "honeybee": ("bee",),
    "T-Rex": ("tyrannosaurus", "dinosaur"),
    "sauropod": ("brontosaurus",),
    "soccer ball": ("football", "ball"),
    "french fries": ("fries",),
    "hamburger": ("burger",),
    "wrapped gift": ("gift", "present"),
    "t-shirt": ("shirt",),
    "wastebasket": ("trash can",),
    "billed cap": ("cap", "baseball cap"),
    "running shoe": ("sneaker",),
    "man's shoe": ("shoe",),
    "couch and lamp": ("couch", "sofa"),
    "baby chick": ("chick",),
    "fishing pole": ("fishing rod",),
    "tangerine": ("orange",),
    "ear of corn": ("corn",),
    "hot pepper": ("chili pepper",),
    "locomotive": ("steam train",),
    "fire engine": ("fire truck",),
    "police car light": ("siren",),
    "carpentry saw": ("saw",),
    "musical keyboard": ("piano",),
    "ring buoy": ("lifebuoy",),
    "glass of milk": ("milk",),
    "hot beverage": ("coffee",),
    "teacup without handle": ("cup of tea", "green tea"),
    "beer mug": ("beer", "glass of beer"),
    "wine glass": ("glass of wine", "wine"),
    "crescent moon": ("moon",),
    "woman's clothes": ("blouse",),
    "jack-o-lantern": ("pumpkin", "halloween pumpkin"),
    "kitchen knife": ("knife",),
    "bouquet": ("bunch of flowers",),
    "soft ice cream": ("ice cream cone",),
    "ice cream": ("bowl of ice cream",),
    "magnifying glass tilted left": ("magnifying glass",),
    "flying disc": ("frisbee",),
    "gem stone": ("diamond", "gem"),
    "mobile phone": ("phone", "cell phone"),
    "handbag": ("bag",),
    "briefs": ("underwear",),
    "motor scooter": ("scooter",),
    "water pistol": ("toy gun",),
    "bow and arrow": ("bow",),
    "dagger": ("sword",),
    "alarm clock": ("clock",),
    "person": ("human",),
    "panda": ("panda bear",),
    "houses": ("village",),
    "flying saucer": ("ufo", "spaceship"),
    "fork and knife": ("cutlery",),
    "fork and knife with plate": ("plate",),
    "cocktail glass": ("cocktail", "martini"),
    "steaming bowl": ("ramen", "bowl of ramen"),
    "chicken": ("hen",),
    "spouting whale": ("blue whale",),
    "high-heeled shoe": ("high heel",),
    "graduation cap": ("graduation hat",),
}
"""Everyday words for a label, apart from emojibase's shortcodes."""

_ZODIAC_SUBGROUP = 87


_PUNCTUATION = str.maketrans({"\u2019": "'", "\u201c": "", "\u201d": "", "&": "and"})


def fold(text: str) -> str:
    """Plain ASCII: typographic quotes become straight ones, accents are dropped."""
    text = unicodedata.normalize("NFKD", text.translate(_PUNCTUATION))
    return text.encode("ascii", "ignore").decode().strip()


def natural_name(label: str, subgroup: int | None = None) -> str:
    """The name of a thing as people write it, from its emojibase label.

    >>> natural_name("woman: red hair")
    'woman with red hair'
    """
    label = fold(label)
    if subgroup == _ZODIAC_SUBGROUP:
        return f"{label} zodiac sign"
    if ": " in label:
        owner, feature = label.split(": ", 1)
        feature = {"beard": "a beard"}.get(feature, feature)
        return f"bald {owner}" if feature == "bald" else f"{owner} with {feature}"
    if label.endswith(" o'clock"):
        return f"clock showing {label}"
    return RENAMED.get(label, label)


# ---------------------------------------------------------------------------------------------
# Articles


_HEAD_ENDS = re.compile(
    r" (of|with|without|in|on|at|under|behind|over|from|for|and|showing|holding|hugging|not|or"
    r"|fluttering|to|[a-z]+ing)\b.*"
)
_SINGULAR_S = re.compile(r"(ss|us|is|os)$")
_PLURAL_WORDS = {"people", "men", "women", "feet", "chopsticks", "dice", "skis"}
_SINGULAR_WORDS = {
    "binoculars",
    "rhinoceros",
    "hibiscus",
    "canvas",
    "iris",
    "leftwards",
    "rightwards",
}
_MASS_WORDS = set(
    """
    bacon beer bread broccoli butter camping coffee confetti coral corn cutlery fire fog
    food garlic ice jewelry litter luggage milk poo popcorn ramen rice sake salt soap
    spaghetti sushi tea thread toast tofu underwear water wine wood yarn
    """.split()  # noqa: SIM905 - a list of thirty quoted words reads worse
)
_PROPER = re.compile(r"^(Santa|Mrs\.|Mx |mount fuji)")
_THE = re.compile(r"^(Statue of Liberty|Tokyo tower|milky way|kaaba|sun$)")
_CONSONANT_SOUND = re.compile(r"^(uni|eur|ewe|one\b|one-|use|ufo|uk)", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"^([aeiou]|hour|x-ray|sos\b)", re.IGNORECASE)


def indefinite(name: str) -> str:
    """`name` with the article that English wants: "an apple", "a unicorn", "glasses", "bread".

    Decided by the head noun (what stands before "of", "with", ...): plural and mass nouns get
    none, proper names none or "the".
    """
    if _THE.match(name):
        return f"the {name}"
    if _PROPER.match(name):
        return name
    head = _HEAD_ENDS.sub("", name).split()[-1].lower() if name.split() else ""
    if head in _MASS_WORDS or _is_plural(head) or name.split()[0] in _PLURAL_WORDS:
        return name
    vowel = _VOWEL_SOUND.match(name) and not _CONSONANT_SOUND.match(name)
    return f"{'an' if vowel else 'a'} {name}"


def _is_plural(noun: str) -> bool:
    if noun in _PLURAL_WORDS:
        return True
    return noun.endswith("s") and noun not in _SINGULAR_WORDS and not _SINGULAR_S.search(noun)


# ---------------------------------------------------------------------------------------------
# Styles and captions


@dataclass(frozen=True)
class Style:
    """One way of drawing: the word that asks for it, other words for it, where it comes from."""

    word: str
    aliases: tuple[str, ...]
    package: str
    license: str
    inset: float
    """White margin added on every side, as a part of the icon's width (some sets fill their
    canvas to the last pixel, which a generator learns badly)."""
    default: bool = False
    """Whether captions without any style word belong to this style."""


STYLES = (
    Style("cartoon", ("noto", "cartoonish"), "@iconify-json/noto", "Apache-2.0", 0.03, True),
    Style("3d", ("fluent", "glossy"), "@iconify-json/fluent-emoji", "MIT", 0.02),
    Style("flat", ("plain", "minimal"), "@iconify-json/fluent-emoji-flat", "MIT", 0.02),
    Style("sticker", ("twemoji", "simple"), "@iconify-json/twemoji", "CC-BY-4.0", 0.07),
)

MAX_WORDS = 14
"""Captions stay this short, so that they fit in 24 tokens of CLIP's vocabulary."""


@dataclass(frozen=True)
class Thing:
    """Something to draw: its name, its other names, and words that go with it."""

    hexcode: str
    name: str
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    group: str


def styled_captions(thing: Thing, style: Style, rng: random.Random) -> list[str]:
    """Captions that name the style. The first is the canonical one: "a red apple, flat style"."""
    a_thing, word = indefinite(thing.name), style.word
    other = rng.choice(style.aliases)
    captions = [
        f"{a_thing}, {word} style",
        f"{thing.name}, {word}",
        f"{a_thing} in {word} style",
        f"{word} {thing.name}",
        *rng.sample(
            [
                f"{indefinite(f'{word} icon')} of {a_thing}",
                f"{indefinite(f'{word} drawing')} of {a_thing}",
                f"{thing.name} emoji, {word} style",
                f"{thing.name}, {word} icon",
            ],
            2,
        ),
        f"{a_thing}, {other} style",
    ]
    captions += [f"{indefinite(alias)}, {word} style" for alias in thing.aliases[:3]]
    if tags := _some_tags(thing, rng):
        captions.append(f"{thing.name}, {tags}, {word} style")
    return _short_and_distinct(captions)


def plain_captions(thing: Thing, rng: random.Random) -> list[str]:
    """Captions without a style word: the default style's pictures carry these as well."""
    a_thing = indefinite(thing.name)
    captions = [
        a_thing,
        thing.name,
        *rng.sample(
            [
                f"a drawing of {a_thing}",
                f"a picture of {a_thing}",
                f"an icon of {a_thing}",
                f"{thing.name} emoji",
            ],
            3,
        ),
    ]
    captions += [indefinite(alias) for alias in thing.aliases[:3]]
    if tags := _some_tags(thing, rng):
        captions.append(f"{thing.name}, {tags}")
    return _short_and_distinct(captions)


def captions_for(thing: Thing, style: Style, seed: int = 0) -> list[str]:
    """Every caption of one picture, canonical one first; the same for the same seed."""
    rng = random.Random(f"{seed}/{style.word}/{thing.hexcode}")
    plain = plain_captions(thing, rng) if style.default else []
    return _short_and_distinct([*styled_captions(thing, style, rng), *plain])


def _some_tags(thing: Thing, rng: random.Random, count: int = 2) -> str:
    tags = [tag for tag in thing.tags if tag not in thing.name.lower().split()]
    return ", ".join(sorted(rng.sample(tags, min(count, len(tags))))) if tags else ""


def _short_and_distinct(captions: Sequence[str]) -> list[str]:
    """Without repetitions, and without long ones, except that the first always stays."""
    first, *others = dict.fromkeys(captions)
    return [first, *(text for text in others if len(text.split()) <= MAX_WORDS)]
