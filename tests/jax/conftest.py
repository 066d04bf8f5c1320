"""What is not collected here, and a place for what XLA has compiled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

#: It runs in an environment of its own, with packages that this one does not have.
collect_ignore = ["upstream_reference.py"]


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of compiled programs, of this run alone, for all its processes.

    A pipeline compiles its own programs, and most tests have the same tiny networks: all but the
    first would wait for XLA to compile what it has compiled before.
    """
    if find_spec("jax") is None:
        yield
        return
    import jax

    base = tmp_path_factory.getbasetemp()
    wanted = {
        "jax_compilation_cache_dir": str(
            (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs"
        ),
        "jax_compilation_cache_max_size": 2**34,  # with a limit, processes lock the folder
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name.upper(), str(value))  # for child processes
        yield
    for name, value in before.items():
        jax.config.update(name, value)
