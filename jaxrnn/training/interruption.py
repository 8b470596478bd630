"""A request to end, handled at a moment when everything can be saved.

A scheduler that takes a machine back sends SIGTERM and waits a little; a person presses Ctrl-C. Either is
noted, and between two pieces of training the state is saved and the run ends. A second Ctrl-C ends it at
once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils


class Stopped(KeyboardInterrupt):
    """Training was asked to end; its state is saved, if it has a folder.

    Attributes:
      step: the step after which it ended.
      exit_code: what a process that ends so returns: 128 and the signal's number.
    """

    def __init__(self, step: int, signum: int):
        super().__init__(f"stopped after step {step} by {signal.Signals(signum).name}")
        self.step = step
        self.exit_code = 128 + signum


class ProcessLostError(RuntimeError):
    """Another process of the job is gone; what this one had to say with it cannot be said."""


@contextmanager
def together() -> Iterator[None]:
    """Turn the failure of what processes do together into a `ProcessLostError`.

    Raises:
      ProcessLostError: with several processes, where JAX could not carry out what they share.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = str(error).splitlines()[0][:200]
        raise ProcessLostError(f"another process of the job is lost ({reason})") from error


class Interruption:
    """Listens for SIGTERM and SIGINT while it is entered; outside the main thread it receives nothing."""

    def __init__(self):
        self._heard: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if self._heard is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._heard = signum

    @property
    def asked(self) -> bool:
        """Whether to end; with several processes, whether any of them was asked, which all learn at once."""
        if jax.process_count() == 1:
            return self._heard is not None
        heard = multihost_utils.process_allgather(np.array(self._heard or 0))
        self._heard = int(heard.max()) or None
        return self._heard is not None

    def stop(self, step: int) -> NoReturn:
        """End."""
        assert self._heard is not None
        raise Stopped(step, self._heard)
