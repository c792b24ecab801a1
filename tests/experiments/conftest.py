"""Commands start many processes of seconds, which compiling for takes longer than they do."""

import pytest


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESTL_COMPILE", "0")
