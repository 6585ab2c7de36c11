"""One way to say that a name is not known, or will not do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
  """A mistake in what a user asked for, in one line: field, value, what would do."""


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
