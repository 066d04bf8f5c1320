"""A model on the Hugging Face Hub: what files it has, and fetching those that are needed.

This is the one module that reaches a network, through ``huggingface_hub``, and only for a name
that `hub_names` takes for one. Files are kept in that library's cache, which diffusers,
transformers and others share; what is there is not fetched again.

    model = open_model("someone/some-model", HubOptions(revision="main"))
    folder = model.fetch(["model_index.json", "unet/config.json"])
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

from sfumato.checkpoints.atomic import write_file_atomically
from sfumato.checkpoints.files import is_regular, open_regular
from sfumato.checkpoints.hub_errors import Asked, explain
from sfumato.checkpoints.hub_names import (
    WEIGHT_ENDINGS,
    HubFile,
    HubOptions,
    hub_file,
    hub_name,
)
from sfumato.errors import (
    HubError,
    InputError,
    MissingDependencyError,
    ModelNotFoundError,
    SfumatoError,
    did_you_mean,
)

logger = logging.getLogger(__name__)

#: Seconds to wait for the hub's list of files; ``huggingface_hub`` itself would wait for ever.
_PATIENCE = 20.0

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRUE = {"1", "ON", "YES", "TRUE"}


class HubModel:
    """A model on the hub at one commit, or as much of it as the cache has.

    Attributes:
        name: ``owner/name``.
        files: paths of the files, with ``/`` on every system.
    """

    def __init__(
        self,
        name: str,
        files: Iterable[str],
        cache: _Cache,
        commit: str,
        download: Callable[[str], None] | None,
        trouble: SfumatoError | None = None,
    ) -> None:
        """Made by `open_model`.

        Args:
            cache: where the files are kept.
            commit: whose files these are.
            download: puts a file into the cache; ``None`` when no hub is asked.
            trouble: why none is asked, when the caller wanted one.
        """
        self.name = name
        self.files = frozenset(files)
        self._cache = cache
        self._commit = commit
        self._download = download
        self._trouble = trouble
        self._fetched: set[str] = set()

    @property
    def root(self) -> Path:
        """The folder in the cache that has what was fetched."""
        return self._cache.snapshot(self._commit)

    def has(self, file: str) -> bool:
        """Whether the model has a file of that path."""
        return file in self.files

    def names_in(self, folder: str) -> list[str]:
        """Names of the files in a folder (``""`` is the model's own), sorted."""
        start = f"{folder}/" if folder else ""
        inside = (file.removeprefix(start) for file in self.files if file.startswith(start))
        return sorted(name for name in inside if "/" not in name)

    def get(self, file: str) -> Path:
        """The path of one file, fetched when the cache does not have it.

        Raises:
            ModelNotFoundError: there is no such file.
            HubError: the hub does not give it.
        """
        if not self.has(file):
            raise self.lacks(file)
        if self._download is not None and file not in self._fetched:
            self._download(file)
            self._fetched.add(file)
        if not is_regular(self.root / file):
            raise HubError(
                f"{file!r} of {self.name!r} did not come with the commit that was asked for.",
                hint="The hub, or one that stands in for it, answers inconsistently.",
            )
        return self.root / file

    def fetch(self, files: Iterable[str]) -> Path:
        """Make sure of several files; returns `root`. Errors are those of `get`.

        Descriptions come before weights, so that a folder which was left half-fetched can always
        be told by what it lacks. Only then does the cache remember the commit as the revision's.
        """
        wanted = sorted(set(files), key=lambda file: (file.endswith(WEIGHT_ENDINGS), file))
        for file in wanted:
            if not self.has(file):
                raise self.lacks(file)
        for file in wanted:
            self.get(file)
        if self._download is not None:
            self._cache.remember(self._commit)
        return self.root

    def lacks(self, file: str, message: str | None = None, hint: str | None = None) -> SfumatoError:
        """The error for a file that is not there.

        Args:
            file: its path.
            message: what to say of a model that is wholly known.
            hint: what to do then.
        """
        if self._trouble is not None:
            return HubError(
                f"The cache has no {file!r} of {self.name!r}. {self._trouble.message}",
                hint=self._trouble.hint,
            )
        if self._download is None:
            return ModelNotFoundError(
                f"The cache has only a part of {self.name!r}: {file!r} is missing.",
                hint="Load it once without `local_files_only` and HF_HUB_OFFLINE.",
            )
        message = message or f"{self.name!r} has no file {file!r} on the hub."
        return ModelNotFoundError(message, hint=hint or self._advice(file))

    def _advice(self, file: str) -> str | None:
        base = file.rpartition("/")[2]
        folders = sorted(f.rpartition("/")[0] for f in self.files if f.endswith(f"/{base}"))
        if folders:
            return f"It has one in {', '.join(folders[:8])}: choose with `subfolder`."
        weights = [f for f in sorted(self.files) if f.endswith(WEIGHT_ENDINGS) and "/" not in f]
        if base == "model_index.json" and weights:
            address = f"{self.name}/blob/main/{weights[0]}"
            return f"It has files of weights; `from_single_file({address!r})` loads one."
        return did_you_mean(file, self.files).strip() or None


class _Cache:
    """Where ``huggingface_hub`` keeps a model: ``refs/<revision>``, ``snapshots/<commit>/``."""

    def __init__(self, folder: Path, revision: str) -> None:
        self._folder = folder
        self._revision = revision

    def snapshot(self, commit: str) -> Path:
        return self._folder / "snapshots" / commit

    def commit(self) -> str | None:
        """The commit that the revision was when it was last loaded, if its files are there."""
        commit = self._revision
        if not _COMMIT.fullmatch(commit):
            try:
                with open_regular(self._folder / "refs" / commit) as file:
                    commit = file.read(64).decode("ascii").strip()
            except (OSError, ValueError):
                return None
        return commit if _COMMIT.fullmatch(commit) and self.snapshot(commit).is_dir() else None

    def files(self, commit: str) -> Iterator[str]:
        root = self.snapshot(commit)
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                if is_regular(path):  # a link whose blob was deleted is no file
                    yield path.relative_to(root).as_posix()

    def remember(self, commit: str) -> None:
        if self._revision != commit:
            path = self._folder / "refs" / self._revision
            with suppress(OSError):  # a cache that cannot be written to serves all the same
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file_atomically(path, commit)


def local_copy(
    given: str | PathLike[str],
    options: HubOptions,
    files_of: Callable[[HubModel], Collection[str]],
) -> str | PathLike[str]:
    """The folder of a model: a path as it is, a name's after fetching what is needed.

    Args:
        given: a path, or a name on the hub.
        options: how to ask the hub.
        files_of: which files are needed.

    Raises:
        MissingDependencyError: ``huggingface_hub`` is needed and not installed.
        ModelNotFoundError: the hub has no such model, revision or file.
        HubError: the hub cannot be reached, or refuses.
    """
    name = hub_name(given)
    if name is None:
        return given
    model = open_model(name, options)
    return model.fetch(files_of(model))


def local_file(given: Any, options: HubOptions) -> Any:
    """The path of the file at an address of the hub, fetched if needed; all else as it is.

    Raises:
        InputError: it is an address of something else.
        SfumatoError: as of `local_copy`.
    """
    address = hub_file(given)
    return given if address is None else fetch_address(address, options)


def fetch_address(address: HubFile, options: HubOptions) -> Path:
    """The path of a file on the hub; a revision in the options goes before the address's."""
    if options.revision is None and address.revision is not None:
        given = {name: getattr(options, name) for name in options.__dataclass_fields__}
        options = HubOptions(**{**given, "revision": address.revision})
    model = open_model(address.name, options)
    return model.fetch([address.file]) / address.file


def open_model(name: str, options: HubOptions) -> HubModel:
    """Ask the hub which files a model has; or the cache, when there is no hub or none is wanted.

    Raises:
        MissingDependencyError: ``huggingface_hub`` is not installed.
        ModelNotFoundError: there is no such model or revision.
        HubError: the hub cannot be reached or refuses, and the cache has nothing of the model.
    """
    library = _library(name)
    revision = options.revision or library.constants.DEFAULT_REVISION
    kept = Path(options.cache_dir or library.constants.HF_HUB_CACHE)
    cache = _Cache(kept / f"models--{name.replace('/', '--')}", revision)
    offline = options.local_files_only or _is_offline(library)
    if offline and options.force_download:
        raise InputError(
            "`force_download` needs the network, which `local_files_only` or HF_HUB_OFFLINE "
            "forbids."
        )
    commit = None if options.force_download else cache.commit()
    trouble = None
    if not offline:
        try:
            return _ask(library, name, options, cache)
        except SfumatoError as error:
            if commit is None:
                raise
            logger.warning("%s The files of %s in the cache are used.", error.message, name)
            trouble = error
    if commit is None:
        raise _not_in_cache(name, options)
    return HubModel(name, cache.files(commit), cache, commit, None, trouble)


def _ask(library: Any, name: str, options: HubOptions, cache: _Cache) -> HubModel:
    from sfumato import __version__

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or library.constants.ENDPOINT
    asked = Asked(name=name, endpoint=endpoint, revision=options.revision)
    with _explained(asked), _through(library, options.proxies):
        api = library.HfApi(
            endpoint=endpoint,
            token=options.token,
            library_name="sfumato",
            library_version=__version__,
        )
        revision = options.revision or library.constants.DEFAULT_REVISION
        info = api.model_info(name, revision=revision, timeout=_PATIENCE)
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit) or info.siblings is None:
        raise HubError(f"{endpoint} does not answer as a hub does.", hint="See HF_ENDPOINT.")

    def download(file: str) -> None:
        asked = Asked(name=name, endpoint=endpoint, revision=options.revision, file=file)
        with _explained(asked), _through(library, options.proxies):
            library.hf_hub_download(
                name,
                file,
                revision=commit,
                cache_dir=options.cache_dir,
                token=options.token,
                force_download=options.force_download,
                endpoint=endpoint,
                library_name="sfumato",
                library_version=__version__,
            )

    files = [file.rfilename for file in info.siblings]
    return HubModel(name, files, cache, commit, download)


def _library(name: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError:
        raise MissingDependencyError(
            f"{name!r} is not a folder on this machine, and loading it from the Hugging Face Hub "
            "needs the package `huggingface_hub`.",
            hint="Run `pip install 'sfumato[hub]'`, or check the folder's name.",
        ) from None
    return huggingface_hub


def _is_offline(library: Any) -> bool:
    said = os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
    return said or bool(library.constants.HF_HUB_OFFLINE)


def _not_in_cache(name: str, options: HubOptions) -> ModelNotFoundError:
    revision = f" at the revision {options.revision!r}" if options.revision else ""
    why = "`local_files_only`" if options.local_files_only else "HF_HUB_OFFLINE"
    return ModelNotFoundError(
        f"There is no file or folder {name!r} on this machine, nor a model of that name{revision} "
        "in the hub's cache.",
        hint=f"Check the spelling; or, to ask the hub, load it without {why}.",
    )


@contextmanager
def _explained(asked: Asked) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise explain(error, asked) from None


@contextmanager
def _through(library: Any, proxies: Mapping[str, str] | None) -> Iterator[None]:
    """Go through these proxies for a while.

    The newer versions of ``huggingface_hub`` take no proxies but those of the environment, which
    its connections of all versions read when they are made.
    """
    if not proxies:
        yield
        return
    close = getattr(library, "close_session", None) or library.utils.reset_sessions
    new = {f"{scheme.partition(':')[0]}_proxy": str(proxy) for scheme, proxy in proxies.items()}
    old = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    close()
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        close()
