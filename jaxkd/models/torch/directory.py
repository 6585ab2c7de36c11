"""Directories in which Hugging Face's transformers store a model: config.json and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxkd.errors import ConfigError
from jaxkd.models.torch.files import read_torch_file

_FILES = ("model.safetensors", "pytorch_model.bin")
# Field of config.json -> attribute of a model. A wrong number of heads, for one, changes no shape.
_CONFIG = {
  "num_attention_heads": "heads",
  "num_hidden_layers": "depth",
  "hidden_size": "width",
  "patch_size": "patch",
  "layer_norm_eps": "norm_eps",
}
_REQUIRED = {"hidden_act": "gelu", "qkv_bias": True}


def read_directory(path: Path, model: Any) -> dict[str, Any]:
  """Read the weights of a directory, in one file or in parts with an index.

  Args:
    path: directory with model.safetensors or pytorch_model.bin, or the index of their parts.
    model: the model that they are for. If there is a config.json, its heads, blocks, widths, patch
      size and epsilon must be the model's.

  Raises:
    ConfigError: for a directory without weights, a missing part, a damaged index or config, and a
      config of another model.
  """
  _check_config(path / "config.json", model)
  for name in _FILES:
    if (path / name).is_file():
      return read_torch_file(path / name)
    if (path / f"{name}.index.json").is_file():
      return _parts(path, f"{name}.index.json")
  raise ConfigError(f"{path}: a directory without weights: expected {' or '.join(_FILES)} in it")


def _parts(path: Path, index: str) -> dict[str, Any]:
  files = _json(path / index).get("weight_map")
  if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
    raise ConfigError(f"{path / index}: expected a weight_map from names to files")
  state: dict[str, Any] = {}
  for name in sorted(set(files.values())):
    if Path(name).name != name:
      raise ConfigError(f"{path / index}: {name!r} is not a file of this directory")
    state |= read_torch_file(path / name)
  return state


def _check_config(path: Path, model: Any) -> None:
  if not path.is_file():
    return
  config = _json(path)
  wanted = {field: getattr(model, ours) for field, ours in _CONFIG.items() if hasattr(model, ours)}
  if getattr(model, "library", "") == "transformers":
    wanted |= _REQUIRED
  for field, value in wanted.items():
    if field in config and config[field] != value:
      raise ConfigError(f"{path}: {field} is {config[field]!r}, expected {value!r} for this model")


def _json(path: Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ConfigError(f"{path}: damaged: {error}") from error
  if not isinstance(value, dict):
    raise ConfigError(f"{path}: damaged: expected an object")
  return value
