"""No test reads or writes the cache of the user who runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For the processes that tests start, too."""
    before = os.environ.get("FGCLIP_DOCTOR_CACHE")
    os.environ["FGCLIP_DOCTOR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["FGCLIP_DOCTOR_CACHE"]
    if before is not None:
        os.environ["FGCLIP_DOCTOR_CACHE"] = before
