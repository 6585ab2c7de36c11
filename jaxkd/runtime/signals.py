"""Stopping a run from outside: what signals ask is heeded where nothing gets lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

# The status of a run that stopped: a scheduler's SIGTERM is a "temporary failure" (EX_TEMPFAIL of
# sysexits.h), Ctrl-C what a shell makes of it.
STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}


class Interrupted(BaseException):
  """A run that was asked to stop does so, and all that it made is saved.

  No error, and none for an `except Exception` on its way to take for one.
  """


class Interruption:
  """Whether a run was asked to stop, and whether it holds anything that is not saved yet."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._unsaved = False
    self._by: signal.Signals | None = None

  @property
  def requested(self) -> bool:
    """Whether the run was asked to stop."""
    return self._by is not None

  @property
  def requested_by(self) -> str:
    """The signal's name; another process's, if this one got none."""
    return self._by.name if self._by else "a signal to another process"

  @property
  def status(self) -> int:
    """With which a process that stopped is to exit."""
    return STATUS[self._by or signal.SIGTERM]

  def request(self, by: signal.Signals) -> bool:
    """Asks the run to stop; whether it may as well be ended at once, because it holds nothing."""
    with self._lock:
      self._by = self._by or by
      return not self._unsaved

  def begin(self) -> None:
    """From here on there is something to save, so whoever asks must wait until that is done."""
    with self._lock:
      self._unsaved = True

  def end(self) -> None:
    """From here on all is saved."""
    with self._lock:
      self._unsaved = False


def install_signal_handlers(interruption: Interruption, say: Callable[[str], None]) -> None:
  """Has SIGTERM and Ctrl-C ask a run to stop. For a script to call, in its main thread.

  Python runs a signal's handler only after the call that it is in, which may compile for minutes.
  So a thread is told of signals. Where nothing would be lost, or at a second signal, it ends the
  process at once, which a run survives as it survives SIGKILL.

  Args:
    interruption: asked by the first signal.
    say: told a line before the process is ended at once.
  """
  told, tell = os.pipe()
  os.set_blocking(tell, False)
  signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
  for number in STATUS:
    signal.signal(number, lambda *_: None)
  threading.Thread(target=_wait, args=(told, interruption, say), daemon=True).start()


def _wait(told: int, interruption: Interruption, say: Callable[[str], None]) -> None:
  while number := os.read(told, 1)[0]:
    if number not in STATUS:
      continue
    by = signal.Signals(number)
    second = interruption.requested
    if interruption.request(by) and not second:
      say(f"stopped by {by.name}, holding nothing unsaved; the same command goes on")
      os._exit(interruption.status)
    if second:
      say(f"ended by a second {by.name}; the same command goes on from the last checkpoint")
      os._exit(128 + number)
