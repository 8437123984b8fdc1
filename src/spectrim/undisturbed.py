"""A moment in which Ctrl-C waits: what must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGINT back until the block is left, and deliver it then; for short work only.

    Signals reach the main thread alone: in any other there is nothing to hold back.

    Example:
        >>> import os
        >>> before = signal.signal(signal.SIGINT, lambda *_: print("heard"))
        >>> with undisturbed():
        ...     os.kill(os.getpid(), signal.SIGINT)
        ...     print("done")
        done
        heard
        >>> _ = signal.signal(signal.SIGINT, before)
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple] = []
    before = signal.signal(signal.SIGINT, lambda *told: held.append(told))
    try:
        yield
    finally:
        # A handler that was not set from Python reads as None, and cannot be set again.
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if held:
            signal.raise_signal(signal.SIGINT)
