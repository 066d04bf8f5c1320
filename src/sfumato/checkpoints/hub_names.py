"""What names a model or a file on the Hugging Face Hub, and what is a path; no network here.

A path stays a path: whatever exists on this machine, every `Path` object, and text that looks as
only paths do (``./x``, ``/x``, ``~/x``, ``C:\\x``, ``a/b/c``, ``loras/style.safetensors``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any
from urllib.parse import unquote

from sfumato.errors import InputError

#: How the names of files of weights end.
WEIGHT_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")

_HOST = r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/"
_NAME = r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}"
_MODEL = re.compile(rf"(?P<host>{_HOST})?(?P<name>{_NAME})", re.ASCII | re.IGNORECASE)
_FILE = re.compile(
    rf"(?P<host>{_HOST})?(?P<name>{_NAME})/"
    r"(?:(?P<place>blob|resolve)/(?P<revision>[^/?#]+)/)?(?P<file>[^?#]+)(?:[?#].*)?",
    re.ASCII | re.IGNORECASE,
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
#: First parts of the hub's addresses that are of no model.
_NO_OWNERS = {"api", "collections", "datasets", "docs", "models", "papers", "spaces"}
_REVISION = re.compile(r"\w[\w.+-]{0,254}(?:/\w[\w.+-]{0,254}){0,7}")


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How to ask a hub; without meaning for what is on this machine.

    Attributes:
        revision: a branch, a tag or a commit; default ``main``.
        cache_dir: where fetched files are kept; default that of ``huggingface_hub``.
        token: text to send as proof of who asks; False sends none, None and True the one that
            ``hf auth login`` or ``HF_TOKEN`` left.
        proxies: addresses by scheme, such as ``{"https": "http://proxy:3128"}``.
        force_download: fetch again what the cache has.
        local_files_only: use the cache alone, no network.
    """

    revision: str | None = None
    cache_dir: str | PathLike[str] | None = None
    token: str | bool | None = None
    proxies: Mapping[str, str] | None = None
    force_download: bool = False
    local_files_only: bool = False

    def __post_init__(self) -> None:
        revision = self.revision
        if revision is not None and not (
            isinstance(revision, str) and _REVISION.fullmatch(revision) and ".." not in revision
        ):
            raise InputError(
                "`revision` has to be the name of a branch, a tag or a commit but is "
                f"{str(revision)[:80]!r}."
            )
        if not isinstance(self.token, str | bool | None):
            raise InputError(
                f"`token` has to be text or a bool but is {type(self.token).__name__}."
            )
        if self.proxies is not None and not isinstance(self.proxies, Mapping):
            raise InputError(
                f"`proxies` has to be a dict of addresses but is {type(self.proxies).__name__}."
            )


#: Keywords of every call that may load from a hub.
HUB_KEYWORDS = tuple(field.name for field in fields(HubOptions))


def take_hub_options(kwargs: dict[str, Any]) -> HubOptions:
    """Remove the keywords about a hub from ``kwargs``.

    ``use_auth_token``, the name of ``token`` in former days, is one of them.

    Raises:
        InputError: one has a value that it cannot have.
    """
    given = {name: kwargs.pop(name) for name in HUB_KEYWORDS if name in kwargs}
    old = kwargs.pop("use_auth_token", None)
    if given.get("token") is None and old is not None:
        given["token"] = old
    for name in ("force_download", "local_files_only"):
        if name in given:
            given[name] = bool(given[name])
    return HubOptions(**given)


@dataclass(frozen=True)
class HubFile:
    """A file on the hub by its address."""

    name: str
    file: str
    revision: str | None


def hub_name(given: object) -> str | None:
    """The ``owner/name`` of a model on the hub; ``None`` for what is a path.

    >>> hub_name("someone/some-model"), hub_name("https://huggingface.co/someone/some-model")
    ('someone/some-model', 'someone/some-model')
    >>> hub_name("./someone/some-model"), hub_name("some-model"), hub_name("loras/x.safetensors")
    (None, None, None)
    """
    if not isinstance(given, str) or exists(given):
        return None
    found = _MODEL.fullmatch(given.removesuffix("/") if _SCHEME.match(given) else given)
    if found is None or not _may_be_name(found["name"]):
        return None
    return None if found["name"].lower().endswith(WEIGHT_ENDINGS) else found["name"]


def hub_file(given: object) -> HubFile | None:
    """The file that an address of the hub names; ``None`` for what is a path.

    Taken are ``https://huggingface.co/owner/name/blob/revision/file`` as a browser shows it,
    ``resolve`` for ``blob``, and both without the host.

    Raises:
        InputError: it is an address of something else.

    >>> hub_file("someone/some-model/blob/main/a/b.safetensors").file
    'a/b.safetensors'
    >>> hub_file("models/some-model/b.safetensors") is None
    True
    """
    if not isinstance(given, str) or exists(given):
        return None
    found = _FILE.fullmatch(given)
    if found and (found["host"] or found["place"]) and _may_be_name(found["name"]):
        file = unquote(found["file"])
        if not {"", ".", ".."} & set(file.split("/")) and "\\" not in file:
            revision = found["revision"] and unquote(found["revision"])
            return HubFile(found["name"], file, revision)
    if _SCHEME.match(given) or (found and found["host"]):
        raise InputError(
            f"{given[:200]!r} is no address of a file on the Hugging Face Hub.",
            hint="Only https://huggingface.co/<owner>/<name>/blob/<revision>/<file> is fetched; "
            "download other files and give their path.",
        )
    return None


def exists(path: str) -> bool:
    """Whether there is something of that name on this machine; never raises."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def _may_be_name(name: str) -> bool:
    odd = any(part in name for part in ("..", "--")) or name.endswith((".git", ".", "-"))
    owner = name.partition("/")[0]
    return not odd and owner.lower() not in _NO_OWNERS and not owner.endswith((".", "-"))
