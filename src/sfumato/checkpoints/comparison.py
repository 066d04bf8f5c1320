"""Whether a file's weights are those of a network, by their names and shapes; without torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from sfumato.checkpoints.recognise import what_weights_look_like
from sfumato.errors import WeightsMismatchError, printable
from sfumato.models.legacy import rename_legacy_keys

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]

#: How many names an error message lists.
_SHOWN = 5


def compare(
    expected: Mapping[str, Shape],
    shapes: Mapping[str, Shape],
    where: str,
    network: str,
    tied: Iterable[Iterable[str]] = (),
) -> None:
    """Compare a file's names and shapes with a network's.

    Names that the network does not have are logged as a warning; ``position_ids``, which old text
    encoders saved, are passed over.

    Args:
        expected: of the network.
        shapes: of the file.
        where: the file, for messages.
        network: the name of the class.
        tied: groups of names of which one is enough.

    Raises:
        WeightsMismatchError: names are missing or shapes differ.
    """
    found = rename_legacy_keys(shapes)
    shared = [set(group) for group in tied]
    missing = [
        name
        for name in expected
        if name not in found and not any(name in g and g & set(found) for g in shared)
    ]
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    if missing or wrong:
        parts = []
        if wrong:
            listed = [f"{n} is {list(found[n])}, not {list(expected[n])}" for n in wrong[:_SHOWN]]
            parts.append(f"{len(wrong)} tensors of another shape ({_joined(listed, wrong)})")
        if missing:
            parts.append(f"{len(missing)} tensors missing ({_joined(missing[:_SHOWN], missing)})")
        guess = what_weights_look_like(shapes)
        raise WeightsMismatchError(
            f"{where} does not fit {network} as its config.json describes it: "
            f"{', and '.join(parts)}.",
            hint=f"The file looks like {guess}." if guess else None,
        )
    unexpected = [n for n in found if n not in expected and not n.endswith("position_ids")]
    if unexpected:
        logger.warning(
            "%s holds %d tensors that %s does not have; they are ignored: %s.",
            where,
            len(unexpected),
            network,
            _joined(unexpected[:_SHOWN], unexpected),
        )


def _joined(some: list[str], all_of_them: list[str]) -> str:
    text = "; ".join(printable(name, 160) for name in some)
    more = len(all_of_them) - len(some)
    return f"{text}; and {more} more" if more else text
