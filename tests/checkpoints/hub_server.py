"""A hub of models on this machine: as much of the real one as its client asks for.

`Hub` serves repositories from memory and notes every request; `lay_out` writes the cache that the
client would leave behind, for tests that have no hub at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]

WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt")


def commit_of(files: Files) -> str:
    """A commit's name for some files."""
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


def blob_of(content: bytes) -> str:
    """The name of a file's content in the cache."""
    return hashlib.sha256(content).hexdigest()


def files_below(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by their paths in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def lay_out(cache: Path, name: str, files: Files, revision: str = "main") -> Path:
    """Write a model into a cache as ``huggingface_hub`` does; its folder."""
    folder = cache / f"models--{name.replace('/', '--')}"
    commit = commit_of(files)
    ref = folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    for path, content in files.items():
        blob = folder / "blobs" / blob_of(content)
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        link = folder / "snapshots" / commit / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


@dataclass
class Repository:
    """A model on the hub.

    Attributes:
        revisions: files by the name of a branch or tag.
        token: needed to see that the repository is there.
        gated: nobody may have its files.
    """

    revisions: dict[str, Files]
    token: str | None = None
    gated: bool = False

    def resolve(self, revision: str) -> Files | None:
        """The files at a branch, a tag or a commit."""
        if revision in self.revisions:
            return self.revisions[revision]
        commits = {commit_of(files): files for files in self.revisions.values()}
        return commits.get(revision)


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        method: ``GET`` or ``HEAD``.
        path: of the address, without what stands for the revision; ``api`` for a listing.
        token: what came as proof of who asks.
        host: whom the client believed to talk to.
    """

    method: str
    path: str
    token: str | None
    host: str


@dataclass
class Hub:
    """The hub; make one with `running`.

    Attributes:
        repositories: by name.
        requests: all that it was asked, in order.
        cut: files (by the end of their path) of which half is sent before the line goes dead.
        status: answer everything with this instead.
    """

    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Asked] = field(default_factory=list)
    cut: tuple[str, ...] = ()
    status: int | None = None

    def add(self, name: str, files: Files, **options: Any) -> Repository:
        """Publish a model at ``main``."""
        self.repositories[name] = Repository({"main": files}, **options)
        return self.repositories[name]

    def fetched(self) -> list[str]:
        """Paths of the files whose content was sent, sorted; forgets all requests."""
        found = sorted(r.path for r in self.requests if r.method == "GET" and r.path != "api")
        self.requests.clear()
        return found


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        listing = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if listing else parts
        kind, revision, *path = [*rest, "revision", "main"][:2] if listing and not rest else rest
        file = "/".join(path)
        self.hub.requests.append(
            Asked(
                self.command,
                "api" if listing else file,
                self.headers.get("Authorization"),
                self.headers.get("Host", ""),
            )
        )
        if self.hub.status is not None:
            return self.refuse(self.hub.status)
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None or not self.may_see(repository):
            return self.refuse(401, "RepoNotFound")
        if self.headers.get("Authorization") == "Bearer expired":
            return self.refuse(401, message="Invalid credentials in Authorization header")
        files = repository.resolve(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        commit = commit_of(files)
        if listing:
            siblings = [{"rfilename": path} for path in files]
            body = {"id": f"{owner}/{name}", "sha": commit, "siblings": siblings, "tags": []}
            return self.send(json.dumps(body).encode(), {"Content-Type": "application/json"})
        if repository.gated:
            return self.refuse(403, "GatedRepo")
        if file not in files:
            return self.refuse(404, "EntryNotFound", commit)
        content = files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob_of(content)}"'}
        if kind == "resolve" and file.endswith(WEIGHTS):  # large files are at another address
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
            target = f"{self.hub.address}/{owner}/{name}/large/{revision}/{file}"
            return self.send(b"", {**headers, "Location": target}, status=302)
        return self.send(content, headers, cut=file.endswith(self.hub.cut or ("\0",)))

    def may_see(self, repository: Repository) -> bool:
        said = self.headers.get("Authorization")
        return repository.token is None or said == f"Bearer {repository.token}"

    def refuse(
        self, status: int, code: str | None = None, commit: str | None = None, message: str = ""
    ) -> None:
        headers = {"X-Error-Code": code, "X-Repo-Commit": commit, "X-Error-Message": message}
        self.send(b"", {key: value for key, value in headers.items() if value}, status=status)

    def send(
        self, body: bytes, headers: Mapping[str, str], *, status: int = 200, cut: bool = False
    ) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if start and status == 200:
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start : (start + len(body)) // 2] if cut else body[start:])


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that listens on this machine until the block ends."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield handler.hub  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()
