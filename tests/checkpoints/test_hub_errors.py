"""A hub that refuses, breaks or is not there: one sentence each, and nothing half-written used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sfumato import HubError, InputError, ModelNotFoundError, SfumatoError, StableDiffusionPipeline
from sfumato.checkpoints.hub import open_model
from sfumato.checkpoints.hub_names import HubOptions
from tests.checkpoints.hub_server import Hub, files_below

NAME = "someone/tiny"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def fetch(name: str = NAME, **options: Any) -> list[str]:
    """Fetch two files of a model; the names of all that the cache then has of the commit."""
    model = open_model(name, HubOptions(**options))
    return sorted(files_below(model.fetch(["a.json", "b.safetensors"])))


FILES = {"a.json": b"{}", "b.safetensors": b"0123456789" * 1000, "c.bin": b"c"}


def sent_tokens(hub: Hub) -> Iterator[str | None]:
    yield from (asked.token for asked in hub.requests)
    hub.requests.clear()


def test_a_token_is_sent_when_there_is_one_and_only_then(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, FILES)
    fetch(force_download=True)
    assert set(sent_tokens(hub)) == {None}
    fetch(force_download=True, token="mine")
    assert set(sent_tokens(hub)) == {"Bearer mine"}
    monkeypatch.setenv("HF_TOKEN", "of-the-environment")
    fetch(force_download=True)
    assert set(sent_tokens(hub)) == {"Bearer of-the-environment"}
    fetch(force_download=True, token=False)
    assert set(sent_tokens(hub)) == {None}


def test_a_private_model_needs_its_token(hub: Hub) -> None:
    hub.add(NAME, FILES, token="right")
    for token in (None, "wrong"):
        with pytest.raises(ModelNotFoundError, match=r"'someone/tiny'.*private.*`hf auth login`"):
            fetch(token=token)
    assert fetch(token="right") == ["a.json", "b.safetensors"]


@pytest.mark.parametrize(
    ("options", "prepared", "kind", "expected"),
    [
        ({"name": "someone/tyni"}, {}, ModelNotFoundError,
         "'someone/tyni' is not a folder on this machine, and the hub has no model of that name"),
        ({"revision": "v9"}, {}, ModelNotFoundError, "'someone/tiny' has no revision 'v9' on the"),
        ({}, {"gated": True}, HubError, "is gated: its owner gives it to those who accept"),
        ({"token": "expired"}, {}, HubError, "does not accept the token"),
        ({}, {"status": 403}, HubError, "does not allow you to load 'someone/tiny'"),
        ({}, {"status": 429}, HubError, "too many requests"),
        ({}, {"status": 503}, HubError, "has trouble of its own (status 503)"),
        ({}, {"status": 418}, HubError, "did not give 'someone/tiny' (status 418)"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_with_what_to_do(
    hub: Hub, options: dict[str, Any], prepared: dict[str, Any], kind: type, expected: str
) -> None:
    hub.status = prepared.pop("status", None)
    hub.add(NAME, FILES, **prepared)
    with pytest.raises(kind) as caught:
        fetch(**options)
    assert isinstance(caught.value, SfumatoError) and isinstance(caught.value, OSError)
    text = str(caught.value)
    assert expected in text and "\n" not in text and len(text) < 400
    assert caught.value.__suppress_context__  # the client's own traceback is not shown
    if hub.status != 418:
        assert caught.value.hint


def test_a_gated_model_is_looked_at_before_it_is_refused(hub: Hub) -> None:
    hub.add(NAME, FILES, gated=True)
    with pytest.raises(HubError, match=rf"Accept them at {hub.address}/someone/tiny, then"):
        fetch()
    assert [(asked.method, asked.path) for asked in hub.requests] == [
        ("GET", "api"),
        ("HEAD", "a.json"),
    ]


def test_a_file_that_is_not_listed_is_not_asked_for(hub: Hub) -> None:
    hub.add(NAME, FILES)
    with pytest.raises(ModelNotFoundError, match=r"no file 'b\.safetensor' on the hub\. Did you"):
        open_model(NAME, HubOptions()).fetch(["a.json", "b.safetensor"])
    assert hub.fetched() == []


def test_a_connection_that_breaks_leaves_nothing_half_written(hub: Hub, cache: Path) -> None:
    hub.add(NAME, FILES)
    hub.cut = ("b.safetensors",)
    with pytest.raises(HubError, match=r"'b.safetensors' of 'someone/tiny' could not be fetched"):
        fetch()
    assert sorted({asked.path for asked in hub.requests}) == ["a.json", "api", "b.safetensors"]
    whole = [p for p in cache.rglob("*") if p.is_file() and p.stat().st_size > 1000]
    assert all(path.name.endswith(".incomplete") for path in whole)
    with pytest.raises(ModelNotFoundError, match="nor a model of that name in the hub's cache"):
        fetch(local_files_only=True)  # the commit was never whole, so it is nobody's `main`
    hub.cut = ()
    assert fetch() == ["a.json", "b.safetensors"]
    assert (
        open_model(NAME, HubOptions()).get("b.safetensors").read_bytes() == FILES["b.safetensors"]
    )


def test_an_update_that_breaks_leaves_the_old_commit_to_those_offline(hub: Hub) -> None:
    hub.add(NAME, FILES)
    fetch()
    hub.add(NAME, {**FILES, "a.json": b"[]", "b.safetensors": b"new" * 5000})
    hub.cut = ("b.safetensors",)
    with pytest.raises(HubError, match="could not be fetched"):
        fetch()
    old = open_model(NAME, HubOptions(local_files_only=True))
    assert old.get("a.json").read_bytes() == b"{}"
    assert old.get("b.safetensors").read_bytes() == FILES["b.safetensors"]


def test_a_hub_that_is_gone_leaves_what_the_cache_has(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    repository = hub.add(NAME, FILES)
    fetch()
    for trouble in ("status", "gone", "private"):
        caplog.clear()
        hub.status = 503 if trouble == "status" else None
        repository.token = "of somebody else" if trouble == "private" else None
        hub.repositories = {} if trouble == "gone" else {NAME: repository}
        assert fetch() == ["a.json", "b.safetensors"]
        assert "The files of someone/tiny in the cache are used." in caplog.text
        with pytest.raises(HubError, match=r"The cache has no 'c.bin' of 'someone/tiny'\. .*\."):
            open_model(NAME, HubOptions()).fetch(["c.bin"])


def test_no_network_is_said_as_such(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add(NAME, FILES)
    fetch()
    nobody = "http://127.0.0.1:9"  # the port "discard", where nothing listens
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    assert fetch() == ["a.json", "b.safetensors"]
    assert f"from the hub at {nobody}: there is no connection." in caplog.text
    with pytest.raises(HubError, match=r"there is no connection.*a model on this machine"):
        fetch("someone/else")


def test_something_that_is_no_hub_is_noticed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES)
    answer = type("Answer", (), {"sha": "../../etc", "siblings": []})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: answer)
    with pytest.raises(HubError, match="does not answer as a hub does"):
        fetch()


def test_proxies_are_gone_through_and_forgotten(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    port, hub.address = hub.address.rpartition(":")[2], "http://hub.invalid"
    hub.add(NAME, FILES)
    proxy = {"http": f"http://127.0.0.1:{port}"}
    assert fetch(proxies=proxy) == ["a.json", "b.safetensors"]
    assert {asked.host for asked in hub.requests} == {"hub.invalid"}
    assert os.environ["http_proxy"] == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"revision": "../main"}, "name of a branch"),
        ({"revision": 7}, "name of a branch"),
        ({"token": 7}, "`token` has to be text"),
        ({"proxies": "http://proxy"}, "`proxies` has to be a dict"),
        ({"force_download": True, "local_files_only": True}, "needs the network"),
    ],
)
def test_options_that_cannot_be_are_refused(
    hub: Hub, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        StableDiffusionPipeline.from_pretrained(NAME, **options)
    assert hub.requests == []


def test_a_cache_that_cannot_be_written_to_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.add(NAME, FILES)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be kept in the cache: Not a directory.*cache_dir"):
        fetch(cache_dir=tmp_path / "file")
