"""What goes wrong without being a bug, each in one line."""

from __future__ import annotations

import contextlib
import difflib
import pathlib
import sys
from collections.abc import Iterable, Iterator


class ConfigError(ValueError):
  """A mistake in what a user asked for, in one line: field, value, what would do."""


class MissingPackage(ModuleNotFoundError, ConfigError):
  """A package that only a part of jaxkd needs is not installed, in one line: which, and how to."""


class DiskError(OSError):
  """What could not be written, and why, in one line: a full disk, one that is read only."""


def one_line(error: BaseException) -> str:
  r"""What an error says, in one line; its kind, if it says nothing.

  >>> one_line(ValueError("of 3\n  and 4")), one_line(KeyboardInterrupt())
  ('of 3 and 4', 'KeyboardInterrupt')
  """
  return " ".join(str(error).split()) or type(error).__name__


# What to install for an import, where the two have different names.
_DISTRIBUTIONS = {
  "PIL": "pillow",
  "orbax": "orbax-checkpoint",
  "sklearn": "scikit-learn",
  "tensorflow_datasets": "tensorflow-datasets",
}


@contextlib.contextmanager
def needed_by(what: str, *, extra: str = "experiments") -> Iterator[None]:
  """Names `what` and the package to install in the error of an import inside the block that fails.

  Args:
    what: the module, function or script that needs the package, the subject of the line.
    extra: of this library, which lists the package.

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
  """Ends a script with the line of `needed_by`, if an import inside the block fails."""
  try:
    with needed_by(script, extra=extra):
      yield
  except MissingPackage as error:
    sys.exit(f"error: {error}")


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
