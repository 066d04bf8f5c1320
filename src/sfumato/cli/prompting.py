"""Prompts of the command, checked before anything slow begins: their syntax, their LoRAs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sfumato.checkpoints.files import shown
from sfumato.checkpoints.hub_names import hub_file, hub_name
from sfumato.errors import CheckpointError, InputError, did_you_mean
from sfumato.text.prompt import A1111, SYNTAX_NAMES, TAGGED
from sfumato.text.prompt.tags import take_tags

_ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin")


def check_syntax(name: str) -> None:
    """Raise `InputError` unless there is a syntax of this name."""
    if name not in SYNTAX_NAMES:
        raise InputError(
            f"--prompt-syntax has to be one of {', '.join(SYNTAX_NAMES)}, not {name[:80]!r}."
            f"{did_you_mean(name, SYNTAX_NAMES)}"
        )


def lora_files(folder: Path | None) -> dict[str, Path]:
    """Name to file of the LoRAs in a folder and those below; a name is a file's without its ending.

    Raises:
        CheckpointError: when it is no folder.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise CheckpointError(f"--lora-dir {shown(folder)} is no folder.")
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.endswith(_ENDINGS):
                found.setdefault(Path(name).stem, Path(parent, name))
    return found


def add_loras(
    prompts: Sequence[str], wanted: Sequence[str], files: dict[str, Path], syntax: str
) -> tuple[str, ...]:
    """Write what ``--lora NAME_OR_PATH[:STRENGTH]`` asks for into the prompts, as tags.

    Files given by path join ``files`` under their names, those from the hub under their owner's
    and model's.

    Raises:
        InputError: the syntax has no tags, or a strength is no number.
        CheckpointError: there is no such file.
        SfumatoError: the hub does not give it.
    """
    if not wanted:
        return tuple(prompts)
    if syntax not in TAGGED:
        raise InputError(f"--lora needs --prompt-syntax {A1111}.")
    tags = "".join(_tag(text, files) for text in wanted)
    return tuple(prompt + tags for prompt in prompts)


def _tag(text: str, files: dict[str, Path]) -> str:
    name, _, strength = text.rpartition(":")
    if not name or not _is_number(strength):
        name, strength = text, "1"
    if name not in files and (hub_name(name) or hub_file(name)):
        from sfumato.adapters.files import ADAPTER_FILES
        from sfumato.checkpoints.find_file import find_file

        path = find_file(name, ADAPTER_FILES)
        name = hub_name(name) or path.stem
        files[name] = path
    elif name not in files:
        path = Path(name)
        if not path.is_file():
            known = ", ".join(sorted(files)) or "none"
            raise CheckpointError(
                f"--lora {shown(path)} is neither a file nor a name in --lora-dir; there are: "
                f"{known[:2000]}.{did_you_mean(name, files)}"
            )
        name = path.stem
        files[name] = path
    return f"<lora:{name}:{strength}>"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_tags(prompts: Iterable[str], files: Mapping[str, Path], syntax: str) -> None:
    """Raise `InputError` for a tag that is malformed, or names no LoRA."""
    if syntax not in TAGGED:
        return
    names = {tag.name for prompt in prompts for tag in take_tags(prompt)[1]}
    for name in sorted(names - set(files)):
        raise InputError(
            f"There is no LoRA {name[:80]!r} for a tag in the prompt; there are: "
            f"{', '.join(sorted(files))[:2000] or 'none'}.{did_you_mean(name, files)}",
            hint="Say with --lora-dir in which folder they are.",
        )
