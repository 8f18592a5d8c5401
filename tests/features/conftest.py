"""Every feature is shown on both kinds of stores."""

from __future__ import annotations

import pytest

from tests.features import helpers


@pytest.fixture(autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make` builds its servers on."""
    if getattr(request, "param", "memory") == "redis":
        monkeypatch.setattr(helpers, "backend", request.getfixturevalue("redis_url"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # What has no server, or asks for a Redis, has stores of its own, or none.
    if "serve" in metafunc.fixturenames and "redis_url" not in metafunc.fixturenames:
        metafunc.parametrize("backend", ["memory", "redis"], indirect=True)
