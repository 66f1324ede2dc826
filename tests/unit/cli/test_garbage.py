"""The garbage collector, while libraries are imported."""

import gc
import subprocess
import sys
import weakref

import pytest

from tracer.cli.garbage import collected_rarely


@pytest.fixture(autouse=True)
def nothing_set_aside():
    """What other tests have set aside is looked at meanwhile."""
    count = gc.get_freeze_count()
    gc.unfreeze()
    yield
    if count:
        gc.freeze()


class Node:
    """What holds itself, and is garbage once nothing else holds it."""

    def __init__(self) -> None:
        self.itself = self


def test_it_is_put_back_even_after_an_error():
    before = gc.get_threshold()
    with pytest.raises(KeyError), collected_rarely():
        assert gc.get_threshold()[0] > before[0]
        raise KeyError
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


@pytest.mark.covers
def test_what_is_made_meanwhile_is_old_and_collected_like_all_else():
    with collected_rarely():
        kept = weakref.ref(Node())
    gc.collect(1)
    assert kept() is not None
    gc.collect()
    assert kept() is None


def test_what_others_have_set_aside_stays_so():
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with collected_rarely():
            pass
        assert gc.get_freeze_count() >= count
    finally:
        gc.unfreeze()


def test_python_does_not_look_through_all_that_it_drops_when_it_ends():
    program = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))  # runs after what is registered later
from tracer.cli import main
main(["compare", "--nonsense"]), main(["compare", "--nonsense"])
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert int(finished.stdout) > 0
