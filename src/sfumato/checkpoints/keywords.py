"""Keywords of loaders: those without effect on a folder, those refused, and unknown ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.errors import InputError, UnknownKeywordError, did_you_mean

#: Keywords about downloading, and about how diffusers fills memory: a folder needs neither. Loaders
#: of torch's networks take `offload_state_dict` themselves.
WITHOUT_EFFECT = frozenset(
    """cache_dir force_download local_files_only low_cpu_mem_usage mirror offload_state_dict
    proxies resume_download revision token use_auth_token""".split()  # noqa: SIM905
)

#: Keywords that ask to run code that comes with a model.
REFUSED = frozenset({"trust_remote_code", "custom_pipeline", "custom_revision"})


def reject_unknown(call: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Raise `UnknownKeywordError` for the first keyword that ``call`` does not have."""
    for name in given:
        if name not in known:
            raise UnknownKeywordError(
                f"{call} got an unexpected keyword argument {name[:80]!r}."
                f"{did_you_mean(name, sorted(known))}"
            )


def without_hub_keywords(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords without those that have no effect on a folder.

    Raises:
        InputError: for keywords that ask to run code from a model.
    """
    for name in REFUSED:
        if kwargs.get(name):
            raise InputError(f"`{name}` is refused: sfumato never runs code that a model brings.")
    return {k: v for k, v in kwargs.items() if k not in WITHOUT_EFFECT and k not in REFUSED}
