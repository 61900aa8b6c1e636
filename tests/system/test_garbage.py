"""Garbage is not searched for while modules and weights are loaded, and is afterwards."""

import gc
from collections.abc import Iterator

import pytest

from cvt_cli.system.garbage import loading


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_what_is_loaded_stays_out_of_the_search() -> None:
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_an_error_ends_it_too() -> None:
    with pytest.raises(ValueError, match="no such model"), loading():
        raise ValueError("no such model")
    assert gc.isenabled()


def test_who_turned_the_search_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
