"""Keeps off the screen what orbax says of errors that it raises as well."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Any

from absl import logging as absl_logging

_LOGGERS = (absl_logging.get_absl_logger(), logging.getLogger("asyncio"))


class QuietOrbax:
  """From `start` to `stop`, no tracebacks of errors that reach the caller anyway.

  Orbax logs them; and once the first of many reads or writes has failed, it asks nobody else what
  became of theirs, and closes the event loop to which they report. Python logs the one, and tells
  of the other as an error nobody can catch.
  """

  def __init__(self) -> None:
    self._before: Any = None

  def start(self) -> None:
    """Begins to hold back."""
    for logger in _LOGGERS:
      logger.addFilter(_is_news)
    self._before = sys.unraisablehook
    sys.unraisablehook = self._told

  def stop(self) -> None:
    """Leaves everything as it was."""
    for logger in _LOGGERS:
      logger.removeFilter(_is_news)
    sys.unraisablehook = self._before

  def _told(self, unraisable: Any) -> None:
    if not _is_late(unraisable.exc_value, unraisable.exc_traceback):
      self._before(unraisable)


def _is_news(record: logging.LogRecord) -> bool:
  if record.name == "asyncio":  # which names the file that was to be written
    return ".orbax-checkpoint" not in record.getMessage()
  return not (record.exc_info and "/orbax/" in record.pathname)


def _is_late(error: BaseException | None, where: TracebackType | None) -> bool:
  """Whether it comes from a callback to an event loop that is closed."""
  in_asyncio = where is not None and "asyncio" in where.tb_frame.f_code.co_filename
  return in_asyncio and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
