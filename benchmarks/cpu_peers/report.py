"""What the rounds come to: medians, paired ratios, and a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu_peers.job import Shape
from benchmarks.cpu_peers.pool import Record


@dataclass(frozen=True)
class Ratio:
    """How many times longer one took than another in the same rounds: median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(theirs: Mapping[int, float], ours: Mapping[int, float]) -> Ratio | None:
    """The ratio over the rounds that both took part in; None if there are none.

    >>> str(ratio({0: 2.0, 1: 3.0, 2: 9.0}, {0: 1.0, 1: 1.0}))
    '2.50 (2.00-3.00)'
    """
    quotients = sorted(theirs[number] / ours[number] for number in theirs.keys() & ours.keys())
    if not quotients:
        return None
    return Ratio(statistics.median(quotients), quantile(quotients, 0.25), quantile(quotients, 0.75))


def quantile(ordered: Sequence[float], share: float) -> float:
    """A quantile of sorted numbers: of few numbers rather an outer one than one in between.

    >>> quantile([1.0, 2.0, 3.0, 4.0, 5.0], 0.25), quantile([1.0, 2.0], 0.25)
    (2.0, 1.0)
    """
    last = len(ordered) - 1
    return ordered[int(share * last) if share < 0.5 else last - int((1 - share) * last)]


def ceilings(rates: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, tuple[str, float]]:
    """For each precision the library with the best median rate, and that rate in GFLOP/s."""
    best = {}
    for precision in rates[0] if rates else ():
        ways = {
            name: statistics.median(rate[precision][name] for rate in rates)
            for name in rates[0][precision]
        }
        name = max(ways, key=lambda way: ways[way])
        best[precision] = (name, ways[name])
    return best


def as_json(
    records: Sequence[Record],
    work: Mapping[Shape, Mapping[str, float]],
    rates: Sequence[Mapping[str, Mapping[str, float]]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that was measured, for other programs."""
    return {
        "settings": dict(settings),
        "ceilings": {
            precision: {"library": name, "gflops": rate}
            for precision, (name, rate) in ceilings(rates).items()
        },
        "shapes": [
            {
                "size": shape.size,
                "batch": shape.batch,
                "steps": shape.steps,
                "gflop": dict(kinds),
                "contenders": {r.name: times_of(r, shape, records) for r in records},
            }
            for shape, kinds in work.items()
        ],
        "contenders": {
            r.name: {
                "precision": r.precision,
                "ready": r.ready,
                "cold": r.cold,
                "prepared": r.prepared,
                "peak": r.peak,
                "distance": r.distance,
                "failure": r.failure,
            }
            for r in records
        },
    }


def times_of(record: Record, shape: Shape, records: Sequence[Record]) -> dict[str, Any]:
    """The times of one contender at one shape, and its ratios to all of ours."""
    times = record.seconds.get(shape, {})
    found = {}
    for other in measures(records):
        quotient = ratio(times, other.seconds.get(shape, {}))
        if quotient is not None:
            found[other.name] = [quotient.median, quotient.low, quotient.high]
    return {"seconds": list(times.values()), "ratio_to": found}


def measures(records: Sequence[Record]) -> list[Record]:
    """Our own contenders, which the others are compared with; the first of all if there is none."""
    ours = [record for record in records if record.name.startswith("sfumato")]
    return ours or list(records[:1])


def table(
    records: Sequence[Record],
    shape: Shape,
    gflop: float,
    best: Mapping[str, tuple[str, float]],
) -> list[str]:
    """The lines of the table for one shape."""
    columns = [record for record in measures(records) if record.seconds.get(shape)]
    header = ["", "median s", "quartiles", "GFLOP/s", "of ceiling", "peak MiB", "cold s"]
    header += ["distance", *(f"x {column.name}" for column in columns)]
    rows = [header]
    for record in records:
        times = record.seconds.get(shape, {})
        if not times or record.failure is not None:
            rows.append([record.name, record.failure or "not measured"])
            continue
        rows.append(
            row(record, times, gflop, best)
            + [str(ratio(times, column.seconds[shape]) or "-") for column in columns]
        )
    return aligned(rows)


def row(
    record: Record,
    times: Mapping[int, float],
    gflop: float,
    best: Mapping[str, tuple[str, float]],
) -> list[str]:
    """The cells of one contender that stand before its ratios."""
    ordered = sorted(times.values())
    middle = statistics.median(ordered)
    ceiling = best.get(record.precision)
    return [
        record.name,
        f"{middle:.3f}",
        f"{quantile(ordered, 0.25):.3f}-{quantile(ordered, 0.75):.3f}",
        f"{gflop / middle:.0f}",
        "-" if ceiling is None else f"{100 * gflop / middle / ceiling[1]:.0f}%",
        f"{record.peak / 2**20:.0f}",
        "-" if record.cold is None else f"{record.cold:.1f}",
        "-" if record.distance is None else f"{record.distance:.1e}",
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, their cells below each other; of two cells the second is a remark."""
    full = [cells for cells in rows if len(cells) != 2]
    widths = [max(len(cells[i]) for cells in full) for i in range(len(full[0]))]
    widths[0] = max(len(cells[0]) for cells in rows)
    lines = []
    for cells in rows:
        first, *others = cells
        if len(cells) != 2:
            others = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *others]))
    return lines
