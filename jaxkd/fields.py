"""Fields of a config: the values that each accepts, and its default.

A config is a nested mapping made from a tree of `Field`s; `check` compares any config with that
tree before anything is loaded, compiled or written.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.errors import ConfigError, unknown_name


@dataclasses.dataclass(frozen=True)
class Field:
  """One value of a config.

  Attributes:
    default: its value in a config that does not set it.
    accepts: whether a value is valid.
    meaning: the accepted values in words, for the error message.
    any_type: whether values may be of another type than the default.
  """

  default: Any
  accepts: Callable[[Any], bool]
  meaning: str
  any_type: bool = False


Fields = Mapping[str, Any]  # name -> Field, or a nested Fields


# The largest int32: steps are counted and random keys are folded in int32 on the device.
_LARGEST = 2**31 - 1
# The smallest normal and the largest finite float32.
_SMALLEST, _GREATEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def integer(default: int, *, minimum: int = 0, maximum: int = _LARGEST) -> Field:
  """Return a field for a whole number in a range."""
  upper = "< 2**31" if maximum == _LARGEST else f"<= {maximum}"
  return Field(
    default,
    lambda v: isinstance(v, int) and not isinstance(v, bool) and minimum <= v <= maximum,
    f"an integer >= {minimum} and {upper}",
  )


def number(
  default: float, *, minimum: float = 0.0, maximum: float = math.inf, exclusive: bool = False
) -> Field:
  """Return a field for a float32 number in a range; `exclusive` excludes the minimum itself."""

  def accepts(v: Any) -> bool:
    if not _is_finite(v):
      return False
    return (v > minimum if exclusive else v >= minimum) and v <= maximum

  upper = "" if maximum == math.inf else f" and <= {maximum:g}"
  return Field(default, accepts, f"a number {'>' if exclusive else '>='} {minimum:g}{upper}")


def flag(default: bool) -> Field:
  """Return a field for True or False."""
  return Field(default, lambda v: isinstance(v, bool), "True or False")


def choice(default: str, names: Sequence[str]) -> Field:
  """Return a field for one of several names."""
  return Field(default, lambda v: v in names, f"one of {', '.join(names)}")


def text(default: str) -> Field:
  """Return a field for any text of one line."""
  return Field(default, _is_line, "a text of printable characters")


def numbers(default: tuple[float, ...]) -> Field:
  """Return a field for a tuple of positive numbers in rising order."""

  def accepts(v: Any) -> bool:
    if not isinstance(v, tuple | list):
      return False
    positive = all(_is_finite(x) and x > 0 for x in v)
    return positive and list(v) == sorted(set(v))

  return Field(default, accepts, "a tuple of rising positive numbers")


def weights(default: tuple[float, ...] = ()) -> Field:
  """Return a field for a tuple of positive numbers in any order; () is the method's default."""

  def accepts(v: Any) -> bool:
    return isinstance(v, tuple | list) and all(_is_finite(x) and x > 0 for x in v)

  return Field(default, accepts, "a tuple of positive numbers")


BALANCED = "balanced"


def class_weights() -> Field:
  """Return a field for a weight of each class, or "balanced"; () weights all by 1."""

  def accepts(v: Any) -> bool:
    if isinstance(v, str):
      return v == BALANCED
    numbers = isinstance(v, tuple | list) and all(_is_finite(x) and x >= 0 for x in v)
    return numbers and (len(v) == 0 or any(x > 0 for x in v))

  meaning = f'"{BALANCED}", or a tuple of numbers >= 0 that are not all 0, one per class'
  return Field((), accepts, meaning, any_type=True)


def arguments() -> Field:
  """Return a field for keyword arguments: a mapping, or a text such as "b1=0.9,b2=0.95"."""

  def accepts(v: Any) -> bool:
    try:
      parse_arguments("", v)
    except ConfigError:
      return False
    return True

  return Field({}, accepts, 'a mapping of arguments, or a text as "b1=0.9,b2=0.95"', any_type=True)


def parse_arguments(where: str, value: Any) -> dict[str, Any]:
  """Return the keyword arguments of a field.

  Args:
    where: name of the field, for errors.
    value: a mapping, or a text of NAME=VALUE with commas between. A value is a Python literal, or
      a word, which is a text.

  Raises:
    ConfigError: for another value.

  >>> parse_arguments("student.optimizer_arguments", "b1=0.9, mu_dtype=bfloat16")
  {'b1': 0.9, 'mu_dtype': 'bfloat16'}
  """
  if isinstance(value, str):
    try:
      call = ast.parse(f"f({value})", mode="eval").body
      assert isinstance(call, ast.Call) and not call.args and isinstance(call.func, ast.Name)
      found = {str(keyword.arg): _argument(keyword.value) for keyword in call.keywords}
      assert "None" not in found and len(found) == len(call.keywords)
      return found
    except (AssertionError, SyntaxError, ValueError) as error:
      raise ConfigError(f'{where}={value!r}: expected arguments as "b1=0.9,b2=0.95"') from error
  if not hasattr(value, "items") or not all(isinstance(name, str) for name in value):
    raise ConfigError(f"{where}={value!r}: expected a mapping of arguments")
  return {name: argument for name, argument in value.items()}


def _argument(node: ast.expr) -> Any:
  return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def channel_numbers(*, positive: bool = False) -> Field:
  """Return a field for a tuple of one number per image channel, or one such tuple for each file.

  () is unset.
  """

  def one(v: Any) -> bool:
    return isinstance(v, tuple | list) and all(_is_finite(x) and (x > 0 or not positive) for x in v)

  def accepts(v: Any) -> bool:
    return one(v) or (isinstance(v, tuple | list) and all(map(one, v)))

  kind = "positive numbers" if positive else "numbers"
  return Field((), accepts, f"a tuple of {kind}, one per channel, or one such tuple for each file")


def image_sizes(*, maximum: int = 4096) -> Field:
  """Return a field for the side of square images (0 is unset), or a tuple of one for each file."""

  def one(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= maximum

  def accepts(v: Any) -> bool:
    return one(v) or (isinstance(v, tuple) and len(v) > 0 and all(map(one, v)))

  meaning = f"an integer >= 0 and <= {maximum}, or a tuple of one for each file"
  return Field(0, accepts, meaning, any_type=True)


def named_or(prefix: str, default: str, known: Sequence[str], example: str) -> Field:
  """Return a field for one of several names, or any name with a prefix, which is checked later."""

  def accepts(v: Any) -> bool:
    return v in known or (_is_line(v) and v.startswith(prefix))

  return Field(
    default, accepts, f"one of {', '.join(known)}, or one of {prefix[:-1]}, as {example}"
  )


def names(default: tuple[str, ...]) -> Field:
  """Return a field for a tuple of at least one name."""
  return Field(
    default,
    lambda v: isinstance(v, tuple | list) and len(v) > 0 and all(map(_is_line, v)),
    "a tuple of names",
  )


def any_names() -> Field:
  """Return a field for a tuple of names, by default ()."""
  return Field(
    (), lambda v: isinstance(v, tuple | list) and all(map(_is_line, v)), "a tuple of names"
  )


def _is_line(v: Any) -> bool:
  # Excludes NUL, which file systems reject, and line breaks, as error messages have one line.
  return isinstance(v, str) and v.isprintable()


def _is_finite(v: Any) -> bool:
  """Check whether `v` is a number in the range of float32, in which devices compute."""
  if not isinstance(v, int | float) or isinstance(v, bool):
    return False
  return v == 0 or _SMALLEST <= abs(v) <= _GREATEST  # for large integers math.isfinite raises


def check(config: Mapping[str, Any], fields: Fields, path: str = "") -> None:
  """Raise a ConfigError naming the first field that is unknown, missing or out of range.

  >>> check({"epochs": 0}, {"epochs": integer(3, minimum=1)})
  Traceback (most recent call last):
  jaxkd.errors.ConfigError: epochs=0: expected an integer >= 1 and < 2**31
  """
  for name in config:
    if name not in fields:
      raise unknown_name(f"field of {path.rstrip('.') or 'the config'}", name, fields)
  for name, field in fields.items():
    where = f"{path}{name}"
    if name not in config:
      raise ConfigError(f"{where} is missing from the config")
    value = config[name]
    if not isinstance(field, Field):
      # A ConfigDict is not a Mapping.
      if not hasattr(value, "items"):
        raise ConfigError(f"{where}={value!r}: expected a section with {', '.join(field)}")
      check(value, field, f"{where}.")
    elif not field.accepts(value):
      raise ConfigError(f"{where}={value!r}: expected {field.meaning}")
