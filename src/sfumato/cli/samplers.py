"""``sfumato samplers``: the samplers and schedules by all their names."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sfumato.pipelines.sampler_names import SAMPLERS, SCHEDULES

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def samplers(
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """List the names that --sampling-method and --scheduler take.

    Case, spaces, - and _ do not matter, and diffusers' class names work too.
    """
    if as_json:
        print(json.dumps({"samplers": _sampler_rows(), "schedulers": _schedule_rows()}))
        return
    print("samplers (--sampling-method)")
    for sampler in SAMPLERS:
        names = ", ".join((sampler.name, *sampler.aliases))
        print(f"  {names}\n      {sampler.about}")
        if sampler.schedules:
            print(f"      with {', '.join(sampler.schedules)}")
    print("\nschedules (--scheduler); Automatic is the model's own")
    for schedule in SCHEDULES:
        print(f"  {', '.join((schedule.name, *schedule.aliases))}")


def _sampler_rows() -> list[dict[str, object]]:
    return [
        {
            "name": sampler.name,
            "class": sampler.class_name,
            "aliases": sampler.aliases,
            "schedulers": ("Automatic", *sampler.schedules),
        }
        for sampler in SAMPLERS
    ]


def _schedule_rows() -> list[dict[str, object]]:
    return [{"name": schedule.name, "aliases": schedule.aliases} for schedule in SCHEDULES]
