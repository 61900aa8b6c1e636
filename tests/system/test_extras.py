"""Extras of this installation."""

from importlib.metadata import PackageNotFoundError

import pytest

from cvt_cli.system import extras


def test_the_hint_names_the_packages() -> None:
    assert extras.install_hint("parquet").startswith('pip install "pyarrow')
    assert extras.install_hint("ray").count('"') == 4
    assert "dev" not in extras.extras()


def test_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.metadata", missing)
    extras.extras.cache_clear()
    assert extras.extras() == {}
    assert extras.install_hint("parquet") == 'pip install ".[parquet]" in a checkout of cvt'
    extras.extras.cache_clear()
