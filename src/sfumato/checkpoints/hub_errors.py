"""What went wrong with a hub, in one sentence and with what to do about it.

``huggingface_hub`` raises errors of its own, of requests (before its version 1), of httpx and of
Rust code. They are told apart by the names of their classes, so none of these has to be there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sfumato.errors import CheckpointError, HubError, ModelNotFoundError, SfumatoError

_LOG_IN = "run `hf auth login`, or pass `token=...`"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a hub was asked for.

    Attributes:
        name: of the model.
        endpoint: the hub's address.
        revision: as the caller gave it.
        file: the file, when it was one.
    """

    name: str
    endpoint: str
    revision: str | None = None
    file: str | None = None

    @property
    def what(self) -> str:
        """The file or the model, for messages."""
        return f"{self.file!r} of {self.name!r}" if self.file else f"{self.name!r}"


def explain(error: Exception, asked: Asked) -> SfumatoError:
    """The error to raise in place of one of ``huggingface_hub``."""
    error = _first_cause(error)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    page = f"{asked.endpoint}/{asked.name}"
    if "GatedRepoError" in kinds:
        return HubError(
            f"{asked.name!r} is gated: its owner gives it to those who accept the conditions.",
            hint=f"Accept them at {page}, then {_LOG_IN}.",
        )
    if "RevisionNotFoundError" in kinds:
        return ModelNotFoundError(
            f"{asked.name!r} has no revision {asked.revision or 'main'!r} on the hub.",
            hint=f"Leave out `revision` for the newest; {page}/tree/main lists the others.",
        )
    if "RepositoryNotFoundError" in kinds:
        return ModelNotFoundError(
            f"{asked.name!r} is not a folder on this machine, and the hub has no model of that "
            "name, or a private one.",
            hint=f"Check the spelling; for a private model {_LOG_IN}.",
        )
    if "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:
        return ModelNotFoundError(
            f"{asked.name!r} has no file {asked.file!r} on the hub.",
            hint=f"{page}/tree/{asked.revision or 'main'} lists the files.",
        )
    status = _status(error)
    return _of_connection(error, asked) if status is None else _of_status(status, asked)


def _first_cause(error: Exception) -> Exception:
    """What failed first: a file that is not in the cache is the end of a longer story."""
    while type(error).__name__ in ("LocalEntryNotFoundError", "ValueError"):
        cause = error.__cause__
        if not isinstance(cause, Exception):
            break
        error = cause
    return error


def _status(error: Any) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _of_status(status: int, asked: Asked) -> HubError:
    if status == 401:
        return HubError(
            f"The hub does not accept the token with which {asked.what} was asked for.",
            hint=f"Make a new one at {asked.endpoint}/settings/tokens, then {_LOG_IN}.",
        )
    if status == 403:
        return HubError(
            f"The hub does not allow you to load {asked.what}.",
            hint=f"See {asked.endpoint}/{asked.name}; a token needs the right to read it.",
        )
    if status == 429:
        return HubError(
            "The hub gets too many requests from this address.",
            hint=f"Wait some minutes, or {_LOG_IN}.",
        )
    if status >= 500:
        return HubError(
            f"The hub at {asked.endpoint} has trouble of its own (status {status}).",
            hint="Try again later.",
        )
    return HubError(f"The hub at {asked.endpoint} did not give {asked.what} (status {status}).")


def _of_connection(error: Exception, asked: Asked) -> SfumatoError:
    kind = type(error).__name__
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return CheckpointError(
            f"{asked.what} cannot be kept in the cache: {error.strerror}.",
            hint="Choose another place with `cache_dir`, or HF_HUB_CACHE.",
        )
    if kind == "OfflineModeIsEnabled":
        reason = "HF_HUB_OFFLINE forbids it"
    elif "Timeout" in kind:
        reason = "there was no answer in time"
    elif "Proxy" in kind:
        reason = "the proxy does not let it through"
    elif "SSL" in kind or "CERTIFICATE_VERIFY" in text:
        reason = "its certificate cannot be checked"
    elif "Chunked" in kind or "RemoteProtocol" in kind or "Incomplete" in kind:
        reason = "the connection broke off"
    elif "Connect" in kind or "Network" in kind or "ReadError" in kind:
        reason = "there is no connection"
    else:
        reason = f"{kind}: {text[:200]}"
    return HubError(
        f"{asked.what} could not be fetched from the hub at {asked.endpoint}: {reason}.",
        hint="Try again when the network is there, which goes on where it stopped; "
        "or give the folder of a model on this machine.",
    )
