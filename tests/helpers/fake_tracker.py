"""A tracker in memory: what is sent is lost unless it is flushed, and it fails or hangs when told to."""

from rfjax.errors import RfjaxError

opened: list = []  # `About`s
kept: list = []  # (number, item) that were flushed
closed: list = []
failures: list = []  # what the next calls of `send` raise or, if it can be called, do
missing = [""]


def reset():
    for each in (opened, kept, closed, failures):
        each.clear()
    missing[0] = ""


def why_not():
    return missing[0]


class Fake:
    def __init__(self, about):
        opened.append(about)
        self._held = []

    def send(self, items, number):
        if failures:
            failure = failures.pop(0)
            if callable(failure):
                failure()
            else:
                raise failure
        self._held += [(number + place, item) for place, item in enumerate(items)]

    def flush(self):
        kept.extend(self._held)
        self._held = []

    def close(self, done):
        closed.append(done)


def fail(times=1, text="no network"):
    failures.extend([RfjaxError(text)] * times)


open_run = Fake
