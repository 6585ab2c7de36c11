"""What goes wrong without being a bug, each in one line."""

from __future__ import annotations

import contextlib
import difflib
import pathlib
from collections.abc import Iterable, Iterator


class ConfigError(ValueError):
  """A mistake in what a user asked for, in one line: field, value, what would do."""


class DiskError(OSError):
  """What could not be written, and why, in one line: a full disk, one that is read only."""


def one_line(error: BaseException) -> str:
  r"""What an error says, in one line; its kind, if it says nothing.

  >>> one_line(ValueError("of 3\n  and 4")), one_line(KeyboardInterrupt())
  ('of 3 and 4', 'KeyboardInterrupt')
  """
  return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Names `path` in the error of whatever cannot be written inside the block.

  >>> with writing(pathlib.Path("runs/metrics.jsonl")):
  ...   raise OSError(28, "No space left on device")
  Traceback (most recent call last):
  jaxkd.errors.DiskError: runs/metrics.jsonl cannot be written: No space left on device
  """
  try:
    yield
  except DiskError:
    raise
  except OSError as error:
    raise DiskError(f"{path} cannot be written: {error.strerror or error}") from error


def unknown_name(what: str, name: object, known: Iterable[str]) -> ConfigError:
  """An error that names the value, the nearest known names and all of them.

  >>> str(unknown_name("model", "resnet21", ["resnet20", "resnet8", "vgg8"]))
  "unknown model 'resnet21': did you mean 'resnet20' or 'resnet8'? known: resnet20, resnet8, vgg8"
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
  hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
  return ConfigError(f"unknown {what} {name!r}: {hint}known: {', '.join(known)}")


def check_file_name(what: str, name: str) -> str:
  """`name`, if it can name a file in its folder and nothing outside of it.

  >>> check_file_name("stage", "../teacher")
  Traceback (most recent call last):
  jaxkd.errors.ConfigError: stage '../teacher': expected a name without '/', that is not '..'
  """
  plain = name.isprintable() and not set(name) & set("/\\\0") and name not in ("", ".", "..")
  if not plain:
    raise ConfigError(f"{what} {name!r}: expected a name without '/', that is not '..'")
  return name
