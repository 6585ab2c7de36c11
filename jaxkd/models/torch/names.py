"""Names of PyTorch's modules and entries, as paths of Flax modules and variables."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeGuard

from jaxkd.errors import ConfigError
from jaxkd.models.staged import TorchNames

# {regular expression of a module's name: path}, or a function from the name to the path or None.
Names = Mapping[str, str | Callable[[Any], str | None]] | Callable[[str], str | None]
Path = tuple[str, ...]

_STATISTICS = {"running_mean": "mean", "running_var": "var"}
# Entries that no output depends on: counters of batch normalisation and of averaged weights, and
# the buffers that profilers (thop) add to every module.
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")


def is_counter(name: str) -> bool:
  """Say if an entry of a state dict is a counter, on which no output depends.

  >>> [is_counter(name) for name in ("layer1.bn1.num_batches_tracked", "n_averaged", "fc.bias")]
  [True, True, False]
  """
  return name.rpartition(".")[2] in _COUNTERS


def module_path(name: str, torch_names: TorchNames) -> str | None:
  r"""The path of the Flax module for the name of a PyTorch module; None if no pattern matches.

  Args:
    name: name of the PyTorch module: a key of the state dict without its last part.
    torch_names: a model's patterns, see StagedModel; the first one that matches the whole name
      counts.

  >>> module_path("layer1.0.conv2", ((r"layer(\d)\.(\d+)\.conv(\d)", r"stage\1_\2/conv\3"),))
  'stage1_0/conv2'
  """
  for pattern, path in torch_names:
    if match := re.fullmatch(pattern, name):
      return match.expand(path) if isinstance(path, str) else path(match)
  return None


def prefix_paths(part: str, torch_names: TorchNames) -> TorchNames:
  """The same patterns for a network that is the submodule `part` of a larger one."""

  def nested(path: str | Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    def nested_path(match: re.Match[str]) -> str | None:
      found = match.expand(path) if isinstance(path, str) else path(match)
      return None if found is None else f"{part}/{found}"

    return nested_path

  return tuple((pattern, nested(path)) for pattern, path in torch_names)


class Resolver:
  """Finds the variable of a model that an entry of a state dict is for."""

  def __init__(
    self, wanted: Collection[Path], torch_names: TorchNames, names: Names | None
  ) -> None:
    """Create a resolver.

    Args:
      wanted: paths of the model's variables, each with its collection in front.
      torch_names: patterns of the model.
      names: patterns of the caller, which are tried first; see `from_torch`.

    Raises:
      ConfigError: for names of another kind, and for an invalid regular expression.
    """
    self._wanted = wanted
    self._torch_names = torch_names
    self._given = _given(names)

  def __call__(self, name: str, ndim: int) -> Path:
    """The path of the variable for an entry of `ndim` axes; () if there is none."""
    return next((path for path in self._candidates(name, ndim) if path in self._wanted), ())

  def _candidates(self, name: str, ndim: int) -> Iterator[Path]:
    module, _, leaf = name.rpartition(".")
    if (given := self._given(module)) is not None:
      yield from _variables(given, leaf, ndim)
      yield from _variables(given.replace(".", "/"), leaf, ndim)
      # A name that the model's own patterns know.
      yield from _variables(module_path(given, self._torch_names), leaf, ndim)
    # An entry that is no layer's, such as a position embedding, may be named as a whole.
    if (given := self._given(name)) is not None:
      yield ("params", *given.replace(".", "/").split("/"))
      module, _, leaf = given.rpartition(".")
      yield from _variables(module_path(module, self._torch_names), leaf, ndim)
    module, _, leaf = name.rpartition(".")
    yield from _variables(module_path(module, self._torch_names), leaf, ndim)
    if (whole := module_path(name, self._torch_names)) is not None:
      yield ("params", *whole.split("/"))


def _variables(module: str | None, leaf: str, ndim: int) -> Iterator[Path]:
  """Paths of the Flax variables that a leaf of a PyTorch module may have."""
  if module is None:
    return
  parents = [part for part in module.split("/") if part]
  if leaf in _STATISTICS:
    yield ("batch_stats", *parents, _STATISTICS[leaf])
  elif leaf == "weight":
    for name in ("kernel", "embedding") if ndim > 1 else ("scale",):
      yield ("params", *parents, name)
  else:
    yield ("params", *parents, leaf)


def _given(names: Names | None) -> Callable[[str], str | None]:
  """The caller's names as one function."""
  if names is None:
    return lambda name: None
  if isinstance(names, Mapping):
    patterns = tuple(names.items())
    for pattern, path in patterns:
      _check(pattern, path)
    return lambda name: _expanded(name, patterns)
  if not callable(names):
    raise ConfigError(
      f"names={names!r}: expected a mapping of regular expressions to paths of modules, or a "
      "function of a PyTorch module's name"
    )

  def named(name: str) -> str | None:
    path = names(name)
    if path is not None and not isinstance(path, str):
      raise ConfigError(f"names({name!r}) returned {path!r}: expected a path, or None")
    return path

  return named


def _expanded(name: str, patterns: TorchNames) -> str | None:
  try:
    return module_path(name, patterns)
  except (re.error, IndexError) as error:  # a group that the pattern does not have
    raise ConfigError(f"names: the path for {name!r}: {error}") from error


def _check(pattern: Any, path: Any) -> None:
  if not isinstance(pattern, str) or not _is_path(path):
    raise ConfigError(f"names: {pattern!r}: {path!r}: expected a regular expression and a path")
  try:
    re.compile(pattern)
  except re.error as error:
    raise ConfigError(f"names: {pattern!r} is not a regular expression: {error}") from error


def _is_path(path: Any) -> TypeGuard[str | Callable[[Any], str | None]]:
  return isinstance(path, str) or callable(path)
