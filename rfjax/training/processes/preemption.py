"""The flag that says a run was told to stop: signals set it, and the loop reads it between steps."""

from __future__ import annotations

import os
import signal
import threading

from rfjax.training.processes import distributed, watch


class StopSignal:
    """A context manager. Calling the object returns whether SIGTERM or SIGINT has come.

    A SIGINT after the first signal interrupts at once. With one process, the call never returns true outside the main
    thread, because Python handles signals only there. With many processes, a signal to any process makes the same call
    true in all of them: JAX handles SIGTERM, and this object passes a SIGINT on as a SIGTERM.
    """

    def __init__(self):
        self._came = False
        self._before: dict[int, object] = {}

    def __call__(self) -> bool:
        watch.beat()
        return distributed.stop_agreed() if distributed.many() else self._came

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if distributed.many() else (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self._came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._came = True
        if distributed.many():
            os.kill(os.getpid(), signal.SIGTERM)
