"""One pair of gloo processes, started once and kept for all distributed tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gloo import GlooPair


@pytest.fixture(scope="session")
def gloo_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlooPair]:
    pair = GlooPair(str(tmp_path_factory.mktemp("gloo") / "store"))
    yield pair
    pair.close()
