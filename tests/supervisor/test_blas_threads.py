"""Samplers get one BLAS thread unless the user has set a number."""

import pytest

from sfactory.supervisor.blas_threads import VARIABLES, one_thread


def test_one_thread_sets_every_variable_where_none_is_set():
    assert one_thread({"PATH": "/bin"}) == dict.fromkeys(VARIABLES, "1")


@pytest.mark.parametrize("name", VARIABLES[1:])
def test_one_thread_keeps_the_number_of_one_library(name):
    assert one_thread({name: "4"}) == dict.fromkeys(set(VARIABLES) - {name}, "1")


def test_one_thread_overrides_nothing_where_the_number_of_all_libraries_is_set():
    """OpenBLAS and MKL would prefer a variable of their own to OMP_NUM_THREADS."""
    assert one_thread({"OMP_NUM_THREADS": "4"}) == {}
