"""The ``sfumato`` command: finds the subcommand, runs it, and turns errors into one line.

Each subcommand is one file with an ``app``; only the one that is asked for is imported, and none
imports torch before it computes. Paths and data go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted, 141 nobody read the output.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

#: Subcommand, the file it is in, what it does.
COMMANDS = {
    "generate": ("sfumato.cli.generate", "draw a picture; the word may be left out"),
    "info": ("sfumato.cli.info", "show what a picture, a file of weights or a folder is"),
    "samplers": ("sfumato.cli.samplers", "list the samplers by all their names"),
    "convert": ("sfumato.cli.convert", "change a model's layout, format or precision"),
    "train": ("sfumato.cli.train", "train a model of your own"),
    "doctor": ("sfumato.cli.doctor", "check this installation and machine"),
}
_NOTHING_ASKED = """\
usage: sfumato PROMPT, for example: sfumato "a red apple"
       sfumato --help shows all options and commands"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (those of the process if None).

    Returns:
        The exit code; see the module's docstring.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = _take_debug(words)
    try:  # who interrupts while modules are loaded gets no traceback either
        from sfumato.cli import console
        from sfumato.runtime.environment import one_thread_for_numpy
    except KeyboardInterrupt:
        print("sfumato: interrupted", file=sys.stderr)
        return 130
    one_thread_for_numpy()
    try:
        console.prepare()
        return _run(words)
    except KeyboardInterrupt:
        console.note("sfumato: interrupted")
        return 130
    except BrokenPipeError:
        console.silence_stdout()
        return 141
    except Exception as error:
        if debug:
            raise
        return console.report(error)


def _take_debug(words: list[str]) -> bool:
    """Remove ``--debug`` before any ``--``; whether it was there."""
    options = words[: words.index("--")] if "--" in words else words
    if "--debug" not in options:
        return False
    words.remove("--debug")
    return True


def _run(words: list[str]) -> int:
    from sfumato.cli import console

    if not words:
        console.note(_NOTHING_ASKED)
        return 2
    program = "sfumato"
    name = "generate"
    if words[0] in COMMANDS:
        name, program = words[0], f"sfumato {words[0]}"
        words = words[1:]
    elif len(words) == 1 and words[0].isalpha():  # a prompt, or a command mistyped
        from difflib import get_close_matches

        for meant in get_close_matches(words[0], COMMANDS, n=1, cutoff=0.8):
            console.note(f"sfumato: drawing {words[0]!r}; the command is `sfumato {meant}`")
    app = import_module(COMMANDS[name][0]).app
    from typer import Exit
    from typer.main import get_command

    command = get_command(app)
    code = 0
    try:
        with command.make_context(program, words) as context:
            command.invoke(context)
    except Exit as done:
        code = done.exit_code
    if sys.stdout is not None:
        sys.stdout.flush()  # a reader that has left is noticed here, not at the exit
    return code
