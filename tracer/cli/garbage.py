"""Python's garbage collector, where the command line imports libraries and loads a model.

PyTorch and transformers make a million objects that live as long as the process. The collector
would go through them again and again while they are made, and once more when Python ends.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Objects made before the youngest are looked at, and how often the older ones are.
_RARELY = (100_000, 50, 100)


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Collects garbage rarely, and takes what is left for old; then goes on as before."""
    before = gc.get_threshold()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what others have set aside stays so
            gc.freeze()
            gc.unfreeze()  # among the oldest, whatever its age
        gc.set_threshold(*before)


def leave_the_last() -> None:
    """Keeps Python from looking for garbage in all that it drops when it ends."""
    atexit.unregister(gc.freeze)  # once is enough
    atexit.register(gc.freeze)
