"""One training run in one folder: settings, checkpoints, ``log.jsonl``, ``loss.png``, samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from sfumato.checkpoints.jsonfile import read_json
from sfumato.training.checkpoint import agree_on_config
from sfumato.training.loop import Recipe, TrainConfig, Trainer
from sfumato.training.optimizer import learning_rate
from sfumato.training.report import Log, plot_loss, read_log

logger = logging.getLogger(__name__)

DEFAULT_ARCHITECTURE = Path(__file__).parent.parent / "assets" / "architecture"


def read_architecture(folder: Path | None, name: str) -> dict[str, Any]:
    """``name.json`` of an architecture folder, by default the embedded model's."""
    return read_json((folder or DEFAULT_ARCHITECTURE) / f"{name}.json")


def prepare(recipe: Recipe, config: TrainConfig, run: Path, settings: dict[str, Any]) -> Trainer:
    """A trainer in ``run``, which is started with these settings or resumed with the same."""
    agree_on_config(run, {**config.to_dict(), **settings})
    trainer = Trainer(recipe, config, run)
    if finished := trainer.resume():
        logger.info("resuming '%s' after %d steps", run, finished)
    return trainer


def run_to_end(trainer: Trainer, sample_every: int, draw: Callable[[], Image.Image]) -> None:
    """Iterate over the remaining steps with log, progress bar (on a terminal) and sheets.

    Ctrl-C writes a checkpoint before it is passed on.
    """
    run, config = trainer.run, trainer.config
    log = Log(run / "log.jsonl", trainer.finished)
    bar = tqdm(total=config.steps, initial=trainer.finished, disable=None, unit="step")
    try:
        for step in trainer.steps():
            log.add(step, learning_rate(config.optimizer, step.index, config.steps))
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            bar.update()
            done = step.index + 1
            if sample_every and (done % sample_every == 0 or done == config.steps):
                _publish(trainer, draw, done)
    except KeyboardInterrupt:
        trainer.save()
        raise
    finally:
        bar.close()
        log.close()


def _publish(trainer: Trainer, draw: Callable[[], Image.Image], done: int) -> None:
    folder = trainer.run / "samples"
    folder.mkdir(exist_ok=True)
    with trainer.averaged():
        draw().save(folder / f"step-{done:08d}.png")
    plot_loss(read_log(trainer.run / "log.jsonl")).save(trainer.run / "loss.png")
