"""From a request to pictures without torch: the part of the command that computes at once.

Files are checked against the manifest in a thread of their own, while the model is being read; no
picture is handed on before that is done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from types import SimpleNamespace
from typing import Any

from sfumato.checkpoints.metadata import Recipe
from sfumato.cli.console import is_terminal
from sfumato.cli.drawn import Drawn, each_picture, model_hash_of, stamped
from sfumato.cli.request import Request
from sfumato.graph.networks import Networks, NumpyNetworks
from sfumato.graph.text_to_image import Wish, draw_image
from sfumato.text.prompt import TAGGED
from sfumato.text.prompt.tags import take_tags


def draw(request: Request) -> Iterator[Drawn]:
    """Load the model, then yield each picture as soon as it is there.

    Raises:
        SfumatoError: when the model cannot be loaded, is not the one that drew the picture to
            replay, or does not take the request.
    """
    return draw_with(request, "numpy", "float32", lambda: NumpyNetworks.load(request.model.path))


def draw_with(
    request: Request, backend: str, dtype: str, load: Callable[[], Networks]
) -> Iterator[Drawn]:
    """As `draw`, with networks of any backend."""
    checked = _Background(lambda: model_hash_of(request))
    try:
        networks = load()
        model = networks.model
        holder = SimpleNamespace(scheduler=model.scheduler)
        recipe = stamped(request, holder, backend, dtype)
        networks = networks.with_scheduler(holder.scheduler)
        for one, label in each_picture(request, recipe):
            start = time.perf_counter()
            image = _image(networks, one, label)
            seconds = time.perf_counter() - start
            whole = one.replace(width=image.width, height=image.height, model_hash=checked.result())
            yield Drawn(image=image, recipe=whole, seconds=seconds)
    except Exception:
        checked.result()  # a damaged file is a better reason than what came of it
        raise


def _image(networks: Networks, recipe: Recipe, label: str | None) -> Any:
    steps = recipe.steps or 1
    prompt = take_tags(recipe.prompt)[0] if recipe.prompt_syntax in TAGGED else recipe.prompt
    wish = Wish(
        prompt=prompt,
        negative_prompt=recipe.negative_prompt,
        steps=steps,
        guidance_scale=recipe.cfg_scale or 0.0,
        seed=recipe.seed or 0,
        rng=recipe.rng or "cpu",
        width=recipe.width,
        height=recipe.height,
        eta=recipe.eta or 0.0,
        clip_skip=(recipe.clip_skip or 1) - 1,
        guidance_rescale=recipe.guidance_rescale or 0.0,
        prompt_syntax=recipe.prompt_syntax or "a1111",
    )
    with _progress(steps, label) as advance:
        return draw_image(networks, wish, advance)


@contextmanager
def _progress(steps: int, label: str | None) -> Iterator[Callable[[], Any] | None]:
    """A progress bar where a person looks at stderr."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(total=steps, desc=label, leave=False) as bar:
        yield bar.update


class _Background:
    """A function that runs in a thread of its own; `result` waits for it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """What the function returned.

        Raises:
            BaseException: whatever it raised.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value
