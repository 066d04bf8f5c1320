"""Addresses of files on the Hugging Face Hub, given in place of a path.

Only such an address reaches the network, and only through ``huggingface_hub``.
"""

from __future__ import annotations

import re
from os import PathLike
from typing import Any

from sfumato.errors import CheckpointError, InputError, MissingDependencyError

_HUB = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<rest>.+)", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_FILE = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)/(?:(?:blob|resolve)/(?P<revision>[\w.-]+)/)?(?P<file>[^?#]+)"
)

#: Keywords of `from_single_file` that mean something for an address alone.
HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


def is_address(path: object) -> bool:
    """Whether this is an address of the web rather than a path.

    >>> is_address("https://huggingface.co/org/name/blob/main/model.safetensors")
    True
    >>> is_address("models/model.safetensors")
    False
    """
    return isinstance(path, str) and bool(_SCHEME.match(path) or _HUB.match(path))


def fetch(address: str, options: dict[str, Any]) -> str | PathLike[str]:
    """The path of the file at an address of the hub, downloaded when it is not yet in the cache.

    Args:
        address: as the browser shows it: ``https://huggingface.co/org/name/blob/main/file``.
        options: of `HUB_KEYWORDS`.

    Raises:
        InputError: the address is of no file on the hub.
        MissingDependencyError: ``huggingface_hub`` is not installed.
        CheckpointError: the hub does not give the file.
    """
    hub = _HUB.fullmatch(address)
    parts = _FILE.fullmatch(hub["rest"]) if hub else None
    if parts is None or ".." in parts["file"].split("/"):
        raise InputError(
            f"{address[:200]!r} is no address of a file on the Hugging Face Hub.",
            hint="Only https://huggingface.co/<owner>/<name>/blob/<revision>/<file> is fetched; "
            "download other files and give their path.",
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingDependencyError(
            "Fetching from the hub needs the package `huggingface_hub`.",
            hint="Run `pip install 'sfumato[hub]'`, or download the file and give its path.",
        ) from None
    revision = options.get("revision") or parts["revision"]
    kept = {k: v for k, v in options.items() if v is not None and k != "revision"}
    try:
        return hf_hub_download(parts["repository"], parts["file"], revision=revision, **kept)
    except (OSError, ValueError) as error:  # its own errors derive from these
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"The hub did not give {parts['file'][:120]!r} of {parts['repository'][:120]!r}: "
            f"{reason[:200]}"
        ) from error
