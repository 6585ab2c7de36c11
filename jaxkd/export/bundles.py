"""Bundles: directories with a network that loads without the code that trained it.

model.json holds the architecture (class names and fields, nested) and a description;
weights.safetensors holds the variables under names such as "params/stem_conv/kernel". Nothing is
pickled. Loading constructs classes of jaxkd; others only if the caller allows their import.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import needed_by

with needed_by("jaxkd.export.bundles"):
  from safetensors.numpy import save as save_weights


from jaxkd import preprocessing
from jaxkd.errors import ConfigError, one_line, writing
from jaxkd.export.architectures import MODULES, decoded, encoded
from jaxkd.models.torch.files import arrays_in
from jaxkd.shapes import InputShape, batched, from_described
from jaxkd.types import Network, Preprocessing

FORMAT = 1
_MODEL, _WEIGHTS = "model.json", "weights.safetensors"
_REPLACED = ".replaced"


def save_bundle(
  directory: str | Path,
  network: Network,
  description: Mapping[str, Any],
  *,
  modules: Mapping[str, type[nn.Module]] = MappingProxyType({}),
) -> None:
  """Write a network and its description atomically.

  A bundle at `directory` is replaced once the new one is complete. Between two renames the old one
  is at `directory` + ".replaced"; it is restored if the second rename fails.

  Args:
    directory: target; an existing bundle or empty directory is replaced, anything else is an error.
    network: fields of its module may be modules, numbers, strings, tuples, dicts and dtypes. A
      class that is not part of jaxkd is written by its import path, see
      `jaxkd.export.architectures`.
    description: JSON values. "image_shape", [H, W, C], is required, or "inputs" for inputs that are
      no images (`jaxkd.shapes.described`); "mean" and "std", one number per channel, class names,
      data set and metrics are usual. Shape, mean and std default to those of the network's
      `preprocessing`.
    modules: name -> class, for module classes that are not part of jaxkd and have no import path.

  Raises:
    ConfigError: for a class that cannot be imported by name, a field or description that JSON
      cannot hold, variables that do not belong to the module, or anything but a bundle at
      `directory`.
    DiskError: if it cannot be written.
  """
  target = Path(directory)
  if target.exists() and not _replaceable(target):
    raise ConfigError(f"{target} exists and is not a bundle: nothing was written")
  description = {**described(network.preprocessing), **description}
  document = {
    "format": FORMAT,
    "network": encoded(network.module, {**MODULES, **modules}, "network"),
    "description": description,
  }
  flat = {
    "/".join(path): np.asarray(value, order="C")
    for path, value in flatten_dict(dict(network.variables)).items()
  }
  _check_weights(target, network.module, description, flat)
  weights = save_weights(flat)
  document["sha256"] = hashlib.sha256(weights).hexdigest()
  try:
    text = json.dumps(document, indent=2)
  except TypeError as error:
    raise ConfigError(f"description of bundle {target}: {error}") from error

  with writing(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
      (fresh / _WEIGHTS).write_bytes(weights)
      (fresh / _MODEL).write_text(text + "\n")
      fresh.chmod(0o755)  # mkdtemp makes directories that only their owner can read
      _swap(fresh, target)
    except BaseException:
      shutil.rmtree(fresh, ignore_errors=True)
      raise


def load_bundle(
  directory: str | Path,
  *,
  modules: Mapping[str, type[nn.Module]] = MappingProxyType({}),
  allow: Collection[str] = (),
) -> tuple[Network, dict[str, Any]]:
  """Load a network and its description, written by `save_bundle`.

  Args:
    directory: directory given to `save_bundle`.
    modules: name -> class, for module classes that are not part of jaxkd and have no import path.
    allow: packages, modules or files that the bundle may import code of: ("mypkg",) allows
      "mypkg.nets:Net". Importing runs the code of the module; without this, nothing is imported
      that is not in `modules`.

  Returns:
    The network, its variables as numpy arrays, and the description. The network's `preprocessing`
    is taken from the description; it is None if that has no mean or std.

  Raises:
    ConfigError: for a directory that is no bundle, a missing or damaged file, a newer format, an
      unknown class or field, weights of another architecture, or a mean or std that is not one
      number per channel.
  """
  source = Path(directory)
  # os.path accepts any text as a path, also one that is too long; Path.is_file raises for it.
  if not os.path.isfile(source / _MODEL):
    earlier = _replaced(source)
    hint = f"; an earlier one is at {earlier}" if os.path.exists(earlier) else ""
    raise ConfigError(f"{source} is not a bundle: no {_MODEL}{hint}")
  try:
    document = json.loads((source / _MODEL).read_text())
    # Checked first, since a newer format may have other fields.
    if (version := document["format"]) != FORMAT:
      raise ConfigError(f"bundle {source}: format {version}, this jaxkd reads format {FORMAT}")
    architecture, description = document["network"], document["description"]
    digest = document["sha256"]
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
    raise ConfigError(f"bundle {source}: damaged {_MODEL}: {error!r}") from error
  if not (source / _WEIGHTS).is_file():
    raise ConfigError(f"bundle {source}: no {_WEIGHTS}")
  weights = (source / _WEIGHTS).read_bytes()
  try:
    flat = arrays_in(weights)
  except ValueError as error:
    raise ConfigError(f"bundle {source}: damaged {_WEIGHTS}: {error}") from error
  module = decoded(architecture, {**MODULES, **modules}, source, allow)
  _check_weights(source, module, description, flat)
  if hashlib.sha256(weights).hexdigest() != digest:
    raise ConfigError(f"bundle {source}: damaged {_WEIGHTS}: not what {_MODEL} was written with")
  variables = unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})
  images = preprocessing.from_description(f"bundle {source}", description)
  return Network(module, variables, images), description


def described(images: Preprocessing | None) -> dict[str, Any]:
  """Return the part of a description that a preprocessing determines."""
  if images is None:
    return {}
  return {
    "image_shape": list(images.image_shape),
    "mean": list(images.mean),
    "std": list(images.std),
  }


def _check_weights(
  bundle: Path, module: nn.Module, description: Mapping[str, Any], flat: Mapping[str, np.ndarray]
) -> None:
  """Raise a ConfigError unless names and shapes of the arrays are those of the module's `init`."""
  inputs = batched(_input_shape(f"bundle {bundle}", description), (1,))
  try:
    variables = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), inputs))
  except Exception as error:  # any kind: the module's own code raises it
    reason = one_line(error)
    raise ConfigError(f"bundle {bundle}: not a network that can be made: {reason}") from error
  wanted = {"/".join(path): like.shape for path, like in variables.items()}
  shared = wanted.keys() & flat.keys()
  problems = {
    "missing": wanted.keys() - flat.keys(),
    "unexpected": flat.keys() - wanted.keys(),
    "of another shape": {name for name in shared if flat[name].shape != wanted[name]},
  }
  found = [f"{len(names)} {what} ({_first(names)})" for what, names in problems.items() if names]
  if found:
    raise ConfigError(f"bundle {bundle}: weights of another architecture: {', '.join(found)}")


def _input_shape(where: str, description: Mapping[str, Any]) -> InputShape:
  if "inputs" in description:
    return from_described(where, description["inputs"])
  try:
    height, width, channels = (int(size) for size in description["image_shape"])
  except (KeyError, TypeError, ValueError) as error:
    raise ConfigError(
      f"{where}: its description needs image_shape, [height, width, channels]"
    ) from error
  return height, width, channels


def _first(names: set[str], count: int = 3) -> str:
  return ", ".join(sorted(names)[:count]) + (", ..." if len(names) > count else "")


def _replaceable(target: Path) -> bool:
  return target.is_dir() and ((target / _MODEL).is_file() or not any(target.iterdir()))


def _replaced(target: Path) -> Path:
  return target.with_name(target.name + _REPLACED)


def _swap(fresh: Path, target: Path) -> None:
  """Rename `fresh` to `target`; the old bundle is removed last, or restored on failure."""
  if not target.exists():
    fresh.rename(target)
    return
  replaced = _replaced(target)
  shutil.rmtree(replaced, ignore_errors=True)
  target.rename(replaced)
  try:
    fresh.rename(target)
  except BaseException:
    replaced.rename(target)
    raise
  shutil.rmtree(replaced)
