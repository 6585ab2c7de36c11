"""Stop requests by SIGTERM and SIGINT; imports only the standard library, as it is loaded first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

# Exit status of a run that stopped on a signal. SIGTERM: a temporary failure, EX_TEMPFAIL of
# sysexits.h. SIGINT: the status that shells report after Ctrl-C.
STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}


class Interrupted(BaseException):
  """Raised by a run that stops on request, after everything is saved.

  It is not an Exception: an `except Exception` block must not handle it as an error.
  """


class Interruption:
  """A request to stop, and a flag for work that is not saved yet; safe to use from threads."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._unsaved = False
    self._by: signal.Signals | None = None

  @property
  def requested(self) -> bool:
    """True after the first request."""
    return self._by is not None

  @property
  def requested_by(self) -> str:
    """Name of the first signal; without one here, another process received it."""
    return self._by.name if self._by else "a signal to another process"

  @property
  def status(self) -> int:
    """Exit status for the process."""
    return STATUS[self._by or signal.SIGTERM]

  def request(self, by: signal.Signals) -> bool:
    """Request a stop; return whether nothing is unsaved, so that the process may exit at once."""
    with self._lock:
      self._by = self._by or by
      return not self._unsaved

  def begin(self) -> None:
    """Mark the start of work that must be saved before the process may exit."""
    with self._lock:
      self._unsaved = True

  def end(self) -> None:
    """Mark everything as saved."""
    with self._lock:
      self._unsaved = False


def install_signal_handlers(interruption: Interruption, print_line: Callable[[str], None]) -> None:
  """Make SIGTERM and SIGINT request a stop of the run. Call it in the script's main thread.

  Python runs a signal handler only after the current C call, which may compile for minutes. So a
  thread waits for signals. It ends the process at once if nothing is unsaved, or at a second
  signal, which a run survives as it survives SIGKILL.

  Args:
    interruption: receives the request of the first signal.
    print_line: prints the reason before the process is ended at once.
  """
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)
  signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
  for number in STATUS:
    signal.signal(number, lambda *_: None)
  arguments = (read_end, interruption, print_line)
  threading.Thread(target=_wait, args=arguments, daemon=True).start()


def _wait(read_end: int, interruption: Interruption, print_line: Callable[[str], None]) -> None:
  while number := os.read(read_end, 1)[0]:
    if number not in STATUS:
      continue
    by = signal.Signals(number)
    second = interruption.requested
    if interruption.request(by) and not second:
      print_line(f"stopped by {by.name}, holding nothing unsaved; the same command goes on")
      os._exit(interruption.status)
    if second:
      print_line(f"ended by a second {by.name}; the same command goes on from the last checkpoint")
      os._exit(128 + number)
