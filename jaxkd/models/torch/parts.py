"""The state dict among the entries of a checkpoint, and the prefixes of its names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxkd.errors import ConfigError
from jaxkd.models.torch.names import is_counter

State = Mapping[str, Any]

# Keys under which published checkpoints hold the weights, beside other entries.
WRAPPERS = ("model", "state_dict", "net", "model_state_dict")
CHOICE = "part=... (teacher.weights_part in a config)"
_PREFIXES = ("module.", "model.", "_orig_mod.")
_NO_WEIGHTS = "optim|sched|scaler"  # in the keys of the states of optimizers and the like
_DEPTH = 3  # of mappings in mappings
_LISTED = 8  # names in an error message


def state_dict(where: str, value: Any, part: str | None = None) -> State:
  """The mapping of names to tensors that a checkpoint holds, with its names as they are.

  Entries that are no tensors, and counters, are left out.

  Args:
    where: the file, for errors.
    value: the content of the file.
    part: key of the entry that holds the state dict (dots lead into nested ones), or the prefix of
      the names of a part of it; None for the only state dict, by itself or as one of `WRAPPERS`.

  Raises:
    ConfigError: if there is no state dict or no such part, and if several could be meant; the
      message lists the parts.
  """
  if not isinstance(value, Mapping):
    raise ConfigError(f"{where}: holds a {type(value).__name__}, not a mapping of names to tensors")
  found = dict(_state_dicts(value))
  if part is None:
    return found[_only(where, value, found)]
  if part in found:
    return found[part]
  inside = {key: state for key, state in found.items() if key.startswith(f"{part}.")}
  if inside:
    chosen = _only(where, value, inside, within=part)
    return inside[chosen]
  ends = [key for key in found if key.endswith(f".{part}")]
  if len(ends) == 1:
    return found[ends[0]]
  prefixed = {key: cut for key, state in found.items() if (cut := _cut(state, part))}
  if len(prefixed) == 1:
    return next(iter(prefixed.values()))
  if ends or prefixed:
    raise ConfigError(
      f"{where}: part={part!r} is in several places, {_listed([*ends, *prefixed])}: expected one "
      "of these"
    )
  raise ConfigError(f"{where}: has no part {part!r}: expected {_listed(parts_of(value))}")


def parts_of(value: Any) -> list[str]:
  """The parts that a checkpoint's content can be asked for: entries and prefixes of names."""
  found = dict(_state_dicts(value))
  if len(found) != 1:
    return list(found)
  ((path, state),) = found.items()
  heads = dict.fromkeys(name.partition(".")[0] for name in without_prefix(state) if "." in name)
  return [*([path] if path else []), *heads]


def without_prefix(
  state: State, known: Callable[[str, Any], bool] = lambda name, value: False
) -> State:
  """Remove "module.", "model." and "_orig_mod." where all names start with it, in any order.

  Args:
    state: the state dict.
    known: function from a name and its value to True if it is one of the model's own names as it
      stands: then the names keep their prefix.
  """
  while state and not any(known(*item) for item in state.items()):
    prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
    if prefix is None:
      break
    state = {name.removeprefix(prefix): value for name, value in state.items()}
  # A part of the network that was compiled by itself.
  plain = {re.sub(r"(?<=\.)_orig_mod\.", "", name): value for name, value in state.items()}
  return plain if len(plain) == len(state) else state


def _state_dicts(value: Mapping[Any, Any], depth: int = 0) -> Iterator[tuple[str, State]]:
  """Every state dict in nested mappings with its path, its keys joined by dots; "" for the top."""
  nested = False
  for key, item in value.items():
    if not isinstance(key, str) or re.search(_NO_WEIGHTS, key):
      continue
    if isinstance(item, Mapping) and depth < _DEPTH:
      for path, state in _state_dicts(item, depth + 1):
        nested = True
        yield (f"{key}.{path}" if path else key), state
  own = {
    name: item
    for name, item in value.items()
    if isinstance(name, str) and is_tensor(item) and not is_counter(name)
  }
  # Beside state dicts, only names of layers' entries are weights: a checkpoint may hold the state
  # of a random number generator, or an accuracy.
  if own and (not nested or any("." in name for name in own)):
    yield "", own


def _only(where: str, value: Any, found: Mapping[str, State], within: str = "") -> str:
  """The path of the state dict that can be meant without a choice."""
  usual = [path for path in found if set(_components(path, within)) <= set(WRAPPERS)]
  # The weights are in an entry of a usual name; names at the top may be those of other layers.
  usual.sort(key=lambda path: (not path, [WRAPPERS.index(p) for p in _components(path, within)]))
  if not usual:
    keys = ", ".join(repr(key) for key in list(value)[:_LISTED]) or "nothing"
    choice = f"; {CHOICE} chooses one of {_listed(found)}" if found else ""
    raise ConfigError(
      f"{where}: no mapping of names to tensors, by itself or as {', '.join(WRAPPERS)}; it has "
      f"{keys}{choice}"
    )
  first = usual[0]
  names = set(without_prefix(found[first]))
  rivals = [path for path in usual[1:] if path]
  rivals += [
    path
    for path, state in found.items()
    if path not in (first, *rivals) and names & set(without_prefix(state))
  ]
  if not rivals:
    return first
  raise ConfigError(
    f"{where}: several state dicts, {_listed([first, *rivals])}: choose one with {CHOICE}, or pass "
    "from_torch one entry of the result of jaxkd.models.torch.files.read_torch_file"
  )


def _components(path: str, within: str) -> list[str]:
  rest = path[len(within) :].strip(".") if within else path
  return [part for part in rest.split(".") if part]


def _cut(state: State, part: str) -> State:
  """The entries whose names start with a part, without it."""
  start = f"{part}."
  for names in (state, without_prefix(state)):
    if cut := {k.removeprefix(start): v for k, v in names.items() if k.startswith(start)}:
      return cut
  return {}


def is_tensor(value: Any) -> bool:
  """Say if a value is an array of numpy or jax, or a tensor of PyTorch."""
  return hasattr(value, "ndim") and (hasattr(value, "detach") or hasattr(value, "__array__"))


def _listed(names: Any) -> str:
  listed = [name or "the top level" for name in names]
  rest = f", and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
  return ", ".join(listed[:_LISTED]) + rest if listed else "no part"
