"""Import what a command needs, once its arguments are checked."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Collect no garbage during the first heavy imports, a quarter of the time to start.

    What they create lasts as long as the process, so later collections leave it out as well, and
    at exit nothing is collected that ends with the process.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)
