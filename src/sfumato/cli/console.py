"""What the command says on stderr, and how it survives odd terminals and hostile text."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import unicodedata
import warnings
from types import FrameType
from typing import Any, NoReturn

from sfumato.errors import (
    InputError,
    SfumatoError,
    UnknownKeywordError,
    did_you_mean,
)

#: Characters that reorder the text around them; a terminal would show something else.
_BIDI = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def printable(text: str) -> str:
    r"""The text with escapes for whatever could move the cursor or hide something.

    >>> printable("a\x1b[2Jb\tc")
    'a\\x1b[2Jb\tc'
    """
    return "".join(
        c
        if c in "\t\n" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI)
        else ascii(c)[1:-1]
        for c in text
    )


def one_line(text: str) -> str:
    """As `printable`, on one line.

    >>> one_line("two\\n  lines")
    'two lines'
    """
    return " ".join(printable(text).split())


_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether `note` is to say nothing, and progress not to be shown."""
    global _quiet
    _quiet = quiet


def note(text: str) -> None:
    """Say something to the person, on stderr."""
    if not _quiet:
        _say(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def is_terminal(stream: Any) -> bool:
    """Whether a person looks at this stream; a closed one is nobody's, nor is one kept quiet."""
    return not _quiet and stream is not None and not stream.closed and stream.isatty()


def prepare() -> None:
    """Make the streams take any text, say warnings in our words, and die tidily of SIGTERM."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
            to_terminal = stream is sys.stderr or not unicode
            stream.reconfigure(errors="backslashreplace" if to_terminal else "surrogateescape")
    show_log(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not in the main thread, where signals are somebody else's business
        return


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # runs the clean-up of every open `with`


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"sfumato: {record.levelname.lower()}: {one_line(record.getMessage())}"


def show_log(level: int) -> None:
    """Show the package's log from this level on, one line for each entry."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    log = logging.getLogger("sfumato")
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


def silence_stdout() -> None:
    """Point stdout nowhere, so that flushing it at exit does not fail a second time."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)


def report(error: Exception) -> int:
    """Say what went wrong in one line; returns the exit code."""
    import typer

    if isinstance(error, typer.TyperException):
        text = _usage_text(error)
        if text:
            _say(text)
        return getattr(error, "exit_code", 2)
    code = 2 if isinstance(error, InputError | UnknownKeywordError) else 1
    _say(f"sfumato: error: {one_line(_error_text(error))}")
    return code


def _usage_text(error: Any) -> str:
    """A usage error in one line; a help text, which is one too, as it is."""
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        return message
    wrong, known = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    if wrong and known is not None:
        message = f"There is no option {wrong}.{did_you_mean(wrong, known)}"
    stop = "" if message.endswith(("?", ".")) else "."
    return f"sfumato: error: {one_line(message)}{stop} See --help."


def _error_text(error: Exception) -> str:
    if isinstance(error, SfumatoError):
        return str(error)
    if _is_out_of_memory(error):
        return "Not enough memory. Try a smaller --width and --height."
    if isinstance(error, OSError) and error.strerror:
        name = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return f"{name}{error.strerror}."
    kind = type(error).__name__
    return f"{kind}: {error} (this should not happen; --debug shows where it did)"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, torch on an accelerator or torch on the CPU ran out of memory."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)
