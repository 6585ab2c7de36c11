"""Fields of the training of one network: the sections "teacher" and "student" of a config."""

from __future__ import annotations

from typing import Any

import optax

from jaxkd.errors import ConfigError
from jaxkd.fields import (
  Field,
  Fields,
  arguments,
  class_weights,
  flag,
  integer,
  named_or,
  number,
  numbers,
  parse_arguments,
  text,
)
from jaxkd.train import make_optimizer, optax_names
from jaxkd.train.optimizers import OPTIMIZERS, SCHEDULES, drops_after_the_end


def training_fields(model: str) -> Fields:
  """Return the fields of the training of one network, by default RepDistiller's CIFAR recipe."""
  return {
    "model": text(model),
    "epochs": integer(240, minimum=1),
    # One of these, or "optax.NAME" with its arguments (`jaxkd.train.optax_names`); "dot" takes
    # `delta`.
    "optimizer": named_or("optax.", "sgd", OPTIMIZERS, "optax.lion"),
    "optimizer_arguments": arguments(),
    "learning_rate": number(0.05, exclusive=True),
    "momentum": number(0.9, maximum=1.0),
    "nesterov": flag(False),
    "weight_decay": number(5e-4),
    "clip_norm": number(0.0),
    "schedule": named_or("optax.", "step", SCHEDULES, "optax.linear_schedule"),
    "schedule_arguments": arguments(),
    "drops": numbers((150, 180, 210)),
    "drop_factor": number(0.1, exclusive=True, maximum=1.0),
    "warmup_epochs": number(0.0),
    "average_decay": number(0.0, maximum=0.999999),
    # Share of every label that is spread evenly over the classes, as in torch's cross_entropy.
    "label_smoothing": number(0.0, maximum=1.0),
    # Weight of the labels of each class, or "balanced", by their number; () weights all by 1.
    "class_weights": class_weights(),
    # Epochs without a better validation accuracy after which the training ends; 0 makes all.
    "patience": integer(0),
    # Dropout between the convolutions of a residual block, for models that have it.
    "dropout": number(0.0, maximum=0.99),
    # Stages of a model that returns logits alone, as "stage1=conv1,pooled=classifier:input", and
    # their preactivations: paths of submodules, see jaxkd.models.tap.
    "tap": text(""),
    "tap_preactivations": text(""),
  }


_DEFAULTS = training_fields("")


def check_training(role: str, section: Any, *, comes_trained: bool) -> None:
  """Raise a ConfigError for fields of a section that contradict each other.

  Args:
    role: name of the section.
    section: a section whose fields are each valid.
    comes_trained: whether its network is loaded and not trained.
  """
  if section.optimizer == "sgd" and section.nesterov and not section.momentum:
    raise ConfigError(f"{role}.nesterov=True: needs momentum > 0, got {role}.momentum=0")
  _check_named(role, section)
  # The schedule checks numbers of updates that exceed int32.
  if section.epochs < section.warmup_epochs < 2**31 and not comes_trained:
    raise ConfigError(
      f"{role}.warmup_epochs={section.warmup_epochs:g}: expected a number <= {section.epochs}, "
      f"as {role}.epochs says, since the learning rate would not be reached"
    )


def recipe_arguments(role: str, section: Any) -> tuple[dict[str, Any], dict[str, Any]]:
  """Return the arguments of a section's optimizer and of its schedule."""
  return (
    parse_arguments(f"{role}.optimizer_arguments", section.get("optimizer_arguments", {})),
    parse_arguments(f"{role}.schedule_arguments", section.get("schedule_arguments", {})),
  )


def _check_named(role: str, section: Any) -> None:
  """Check the names of optax and their arguments; raise a ConfigError that names the section."""
  of_optimizer, of_schedule = recipe_arguments(role, section)
  try:
    if optax_names.is_optax(section.optimizer) or section.optimizer == "dot" or of_optimizer:
      rate = optax.constant_schedule(section.learning_rate)
      make_optimizer(
        section.optimizer,
        rate,
        momentum=section.momentum,
        nesterov=section.nesterov,
        weight_decay=section.weight_decay,
        arguments=of_optimizer,
      )
  except ConfigError as error:
    field = "optimizer_arguments" if of_optimizer else "optimizer"
    raise ConfigError(f"{role}.{field}: {error}") from error
  try:
    if optax_names.is_optax(section.schedule):
      optax_names.check_schedule(section.schedule, of_schedule)
    elif of_schedule:
      raise ConfigError(f"schedule={section.schedule!r} takes none; expected a schedule of optax")
  except ConfigError as error:
    field = "schedule_arguments" if of_schedule else "schedule"
    raise ConfigError(f"{role}.{field}: {error}") from error
  if not optax_names.is_optax(section.optimizer):
    return
  for field in ("momentum", "nesterov"):
    default: Field = _DEFAULTS[field]
    if section[field] != default.default:
      raise ConfigError(
        f"{role}.{field}={section[field]}: expected {default.default}, its default, with "
        f"{role}.optimizer={section.optimizer!r}, whose arguments are in {role}.optimizer_arguments"
      )


def training_remarks(role: str, section: Any) -> list[str]:
  """Return a line for every field of a valid section that has no effect, or an unusual one."""
  found = []
  late = drops_after_the_end(section.drops, section.epochs) if section.schedule == "step" else ()
  if late:
    which = ", ".join(f"{epoch:g}" for epoch in late)
    found.append(
      f"{role}.drops={tuple(section.drops)}: without effect at {which}, as "
      f"{role}.epochs={section.epochs}"
    )
  name, decay = section.optimizer, section.weight_decay
  if optax_names.is_optax(name) and decay and not optax_names.takes(name, "weight_decay"):
    found.append(
      f"{role}.weight_decay={decay:g} is added to the gradient, as {name} takes none; 0 is none"
    )
  return found
