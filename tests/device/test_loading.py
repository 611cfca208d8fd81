"""Loading torch leaves the garbage collector as it was."""

import gc
import sys

import pytest

from sfactory.device.loading import loading_torch


@pytest.fixture
def without_torch(monkeypatch):
    """As in a process that has not loaded torch."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.unfreeze()


def test_loading_torch_collects_nothing_inside_and_never_looks_at_what_was_loaded(without_torch):
    with loading_torch(frozen=True):
        assert not gc.isenabled()
        loaded = [[] for _ in range(1000)]
        before = gc.get_freeze_count()
    assert gc.isenabled()
    assert gc.get_freeze_count() - before > len(loaded)


def test_loading_torch_in_the_process_of_a_user_still_finds_later_garbage(without_torch):
    before = gc.get_freeze_count()
    with loading_torch():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_loading_torch_that_fails_collects_again(without_torch):
    with pytest.raises(ImportError):
        with loading_torch():
            raise ImportError
    assert gc.isenabled()


def test_loading_torch_leaves_a_disabled_collector_disabled(without_torch):
    gc.disable()
    try:
        with loading_torch():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_loading_torch_does_nothing_where_torch_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    before = gc.get_freeze_count()
    with loading_torch():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
