"""Errors that are not bugs, each with a message of one line."""

from __future__ import annotations

import contextlib
import difflib
import pathlib
import sys
from collections.abc import Iterable, Iterator


class ConfigError(ValueError):
  """A wrong value from a user. The message, one line: field, value, accepted values."""


class MissingPackage(ModuleNotFoundError, ConfigError):
  """An optional package is not installed. The message, one line: the package, how to install it."""


class DiskError(OSError):
  """A file cannot be written (a full or read-only disk). The message, one line: file, reason."""


def one_line(error: BaseException) -> str:
  r"""Return an error's message in one line, or the name of its class if it has no message.

  >>> one_line(ValueError("of 3\n  and 4")), one_line(KeyboardInterrupt())
  ('of 3 and 4', 'KeyboardInterrupt')
  """
  return " ".join(str(error).split()) or type(error).__name__


# Import -> distribution to install, where the names differ.
_DISTRIBUTIONS = {
  "PIL": "pillow",
  "orbax": "orbax-checkpoint",
  "sklearn": "scikit-learn",
  "tensorflow_datasets": "tensorflow-datasets",
}


@contextlib.contextmanager
def needed_by(what: str, *, extra: str = "experiments") -> Iterator[None]:
  """Turn a failed import inside the block into a `MissingPackage`, with the package to install.

  Args:
    what: module, function or script that needs the package, the subject of the message.
    extra: extra of this library that lists the package.

  >>> with needed_by("jaxkd.export.bundles"):
  ...   raise ModuleNotFoundError("No module named 'safetensors'", name="safetensors")
  Traceback (most recent call last):
  jaxkd.errors.MissingPackage: jaxkd.export.bundles needs safetensors, which is not installed: pip
    install safetensors, or as the README says jaxkd-distillation[experiments]
  """
  try:
    yield
  except MissingPackage:
    raise
  except ModuleNotFoundError as error:
    name = (error.name or "").partition(".")[0]
    if name in ("", "jaxkd"):  # no package that could be installed
      raise
    package = _DISTRIBUTIONS.get(name, name)
    raise MissingPackage(
      f"{what} needs {package}, which is not installed: pip install {package}, or as the README "
      f"says jaxkd-distillation[{extra}]",
      name=error.name,
    ) from error


@contextlib.contextmanager
def needed_by_script(script: str, *, extra: str = "experiments") -> Iterator[None]:
  """Exit a script with the message of `needed_by` if an import inside the block fails."""
  try:
    with needed_by(script, extra=extra):
      yield
  except MissingPackage as error:
    sys.exit(f"error: {error}")


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Turn an OSError inside the block into a `DiskError` that names `path`.

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
  """Return an error that names the value, the nearest known names and all known names.

  >>> str(unknown_name("model", "resnet21", ["resnet20", "resnet8", "vgg8"]))
  "unknown model 'resnet21': did you mean 'resnet20' or 'resnet8'? known: resnet20, resnet8, vgg8"
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
  hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
  return ConfigError(f"unknown {what} {name!r}: {hint}known: {', '.join(known)}")


def check_file_name(what: str, name: str) -> str:
  """Return `name` if it is a valid file name that cannot point outside its folder.

  >>> check_file_name("stage", "../teacher")
  Traceback (most recent call last):
  jaxkd.errors.ConfigError: stage '../teacher': expected a name without '/', that is not '..'
  """
  plain = name.isprintable() and not set(name) & set("/\\\0") and name not in ("", ".", "..")
  if not plain:
    raise ConfigError(f"{what} {name!r}: expected a name without '/', that is not '..'")
  return name
