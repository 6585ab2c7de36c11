"""Suppression of tracebacks that orbax logs in addition to raising an error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from absl import logging as absl_logging

_LOGGERS = (absl_logging.get_absl_logger(), logging.getLogger("asyncio"))


def suppress_orbax_tracebacks() -> Callable[[], None]:
  """Suppress tracebacks of errors that orbax also raises; return a function that ends this.

  Orbax logs such errors. After one failed write it closes its event loop; pending callbacks then
  raise "Event loop is closed", which Python prints as an error that cannot be caught.
  """
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if not _is_late_callback(unraisable.exc_value, unraisable.exc_traceback):
      before(unraisable)

  def restore() -> None:
    for logger in _LOGGERS:
      logger.removeFilter(_is_no_duplicate)
    sys.unraisablehook = before

  for logger in _LOGGERS:
    logger.addFilter(_is_no_duplicate)
  sys.unraisablehook = hook
  return restore


def _is_no_duplicate(record: logging.LogRecord) -> bool:
  if record.name == "asyncio":  # which names the file that was to be written
    return ".orbax-checkpoint" not in record.getMessage()
  return not (record.exc_info and "/orbax/" in record.pathname)


def _is_late_callback(error: BaseException | None, where: TracebackType | None) -> bool:
  """Check whether the error comes from a callback to a closed event loop."""
  in_asyncio = where is not None and "asyncio" in where.tb_frame.f_code.co_filename
  return in_asyncio and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
