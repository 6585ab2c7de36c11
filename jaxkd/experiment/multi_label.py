"""Checks of a config with `data.labels="multi"`, whose labels are multi-hot."""

from __future__ import annotations

from typing import Any

from jaxkd import methods
from jaxkd.data.multi_label import MULTI
from jaxkd.errors import ConfigError


def check_multi_label(settings: Any) -> None:
  """Raise a ConfigError for what needs single labels in a config with multi-hot ones.

  Args:
    settings: a config.
  """
  if settings.data.get("labels", "single") != MULTI:
    return
  field = f"data.labels={MULTI!r}"
  for name, method in methods.methods(settings.method.name).items():
    if not method.multi_label:
      able = [n for n, m in methods.METHODS.items() if m.multi_label]
      raise ConfigError(
        f"method.name={name!r} needs single labels, and {field}: these take both: {', '.join(able)}"
      )
  for option in ("mixup", "per_class", "teacher_per_class", "test_per_class", "unlabelled"):
    if value := settings.data.get(option):
      raise ConfigError(
        f"data.{option}={value!r}: expected {type(value)()!r} with {field}, as an example has "
        "several classes or none"
      )
  if folder := settings.data.get("unlabelled_folder"):
    raise ConfigError(f"data.unlabelled_folder={folder!r}: expected '' with {field}")
  for role in ("teacher", "student"):
    if weights := settings[role].get("class_weights"):
      raise ConfigError(f"{role}.class_weights={weights!r}: expected () with {field}")
  if settings.teacher.logits:
    raise ConfigError(f"teacher.logits={settings.teacher.logits!r}: expected '' with {field}")
