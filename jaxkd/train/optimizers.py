"""Optimizers and learning-rate schedules, in the conventions of the published recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import optax

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.train import optax_names
from jaxkd.train.by_term import TermwiseTransformation
from jaxkd.train.dot import dot

OPTIMIZERS = ("sgd", "adamw", "dot")
SCHEDULES = ("constant", "step", "cosine")
_NONE: Mapping[str, Any] = MappingProxyType({})


def learning_rate_schedule(
  name: str,
  *,
  learning_rate: float,
  epochs: float,
  steps_per_epoch: int,
  drops: Sequence[float] = (),
  drop_factor: float = 0.1,
  warmup_epochs: float = 0.0,
  arguments: Mapping[str, Any] = _NONE,
) -> optax.Schedule:
  """Return a schedule: update number -> learning rate.

  Args:
    name: "constant"; "step": times `drop_factor` once each epoch of `drops` is over, as the
      published code's "epoch > 150"; "cosine": to 0 over all epochs; or one of optax, as
      "optax.linear_schedule" (`jaxkd.train.optax_names.schedule_of`).
    learning_rate: the peak.
    epochs: length of the phase.
    steps_per_epoch: updates per epoch.
    drops: epochs after which "step" drops, each at a different update. Drops after the last epoch
      have no effect (`drops_after_the_end`).
    drop_factor: multiplier of the rate at each drop of "step".
    warmup_epochs: epochs during which the rate rises linearly, for every schedule; at most
      `epochs`.
    arguments: arguments of a schedule of optax.

  Raises:
    ConfigError: for an unknown name, arguments that do not fit, a warmup that is longer than the
      phase or of 2**31 updates or more, and for drops before the first update or two drops at one
      update.

  >>> rate = learning_rate_schedule(
  ...   "step", learning_rate=0.5, epochs=4, steps_per_epoch=10, drops=(2,))
  >>> [round(float(rate(step)), 3) for step in (0, 19, 20)]
  [0.5, 0.5, 0.05]
  """
  if not optax_names.is_optax(name):
    _refuse(arguments, f"schedule={name!r}", "a schedule of optax, as 'optax.linear_schedule'")
  if optax_names.is_optax(name):
    base = optax_names.schedule_of(
      name,
      arguments,
      learning_rate=learning_rate,
      epochs=epochs,
      steps_per_epoch=steps_per_epoch,
    )
  elif name == "constant":
    base = optax.constant_schedule(learning_rate)
  elif name == "step":
    # Counts of updates are int32; later drops have no effect.
    updates = [update for update in _drop_updates(drops, steps_per_epoch) if update < 2**31]
    base = optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(updates, drop_factor))
  elif name == "cosine":
    base = optax.cosine_decay_schedule(learning_rate, max(1, round(epochs * steps_per_epoch)))
  else:
    raise unknown_name("schedule", name, (*SCHEDULES, "optax.NAME"))
  warmup = round(warmup_epochs * steps_per_epoch)
  if not warmup:
    return base
  if warmup >= 2**31:
    raise ConfigError(f"warmup_epochs={warmup_epochs:g}: more updates than int32 counts")
  if warmup_epochs > epochs:
    raise ConfigError(
      f"warmup_epochs={warmup_epochs:g}: expected a number <= {epochs:g}, the epochs of the "
      "training, which would end before the learning rate is reached"
    )
  return lambda count: base(count) * jnp.minimum(1.0, (count + 1) / warmup)


def _drop_updates(drops: Sequence[float], steps_per_epoch: int) -> list[int]:
  """Return the updates after which the rate drops: increasing numbers, from 1."""
  updates: list[int] = []
  for epoch in drops:
    update = round(epoch * steps_per_epoch)
    if update < 1:
      raise ConfigError(
        f"drops={tuple(drops)}: {epoch:g} is before the first update, of which an epoch has "
        f"{steps_per_epoch}; a lower learning_rate does the same"
      )
    if updates and update <= updates[-1]:
      raise ConfigError(
        f"drops={tuple(drops)}: {drops[len(updates) - 1]:g} and {epoch:g} are both after update "
        f"{update}, where the rate can drop once; expected at least 1/{steps_per_epoch} of an "
        "epoch between them, or a lower drop_factor"
      )
    updates.append(update)
  return updates


def drops_after_the_end(drops: Sequence[float], epochs: float) -> tuple[float, ...]:
  """Return the drops of a "step" schedule that have no effect in a training of `epochs` epochs.

  >>> drops_after_the_end((150, 180, 210), 180)
  (180, 210)
  """
  return tuple(epoch for epoch in drops if epoch >= epochs)


def make_optimizer(
  name: str,
  schedule: optax.Schedule,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  arguments: Mapping[str, Any] = _NONE,
) -> optax.GradientTransformation:
  """Return an optimizer over any pytree of parameters.

  "sgd" is PyTorch's, which the published recipes assume: weight decay is added to the gradient
  before momentum, for every parameter, including biases and normalisation. "adamw" decays after.
  "dot" is SGD with a momentum for the labels' gradient and one for that of all other terms
  (`jaxkd.train.dot`); without distillation it is "sgd".
  An optimizer of optax that takes `weight_decay` gets it; for any other one it is added to the
  gradient, as for "sgd" and as torch.optim does.

  Args:
    name: "sgd", "adamw", "dot", or one of optax, as "optax.lion" (`jaxkd.train.optax_names`).
    schedule: update number -> learning rate.
    momentum: momentum of sgd, mean of both momenta of dot; without effect for others, which take
      their own arguments.
    nesterov: whether sgd uses Nesterov's momentum.
    weight_decay: coefficient; 0 for none.
    clip_norm: largest global norm of the gradient, clipped before all else; 0 for no clipping.
    arguments: further arguments of "adamw" or of an optimizer of optax; of "dot", `delta`, 0.075
      unless it is given.

  Raises:
    ConfigError: for an unknown name, or arguments that do not fit.
  """
  parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  if name == "dot":
    _check_dot(arguments, nesterov)
    return dot(
      schedule, momentum=momentum, weight_decay=weight_decay, clip_norm=clip_norm, **arguments
    )
  if name == "sgd":
    _refuse(arguments, "optimizer='sgd'", "optimizer='adamw' or one of optax, as 'optax.sgd'")
    if nesterov and not momentum:
      raise ConfigError("nesterov=True needs momentum > 0, got momentum=0")
    if weight_decay:
      parts.append(optax.add_decayed_weights(weight_decay))
    if momentum:
      parts.append(optax.trace(momentum, nesterov))
    parts.append(optax.scale_by_learning_rate(schedule))
  elif name == "adamw" or optax_names.is_optax(name):
    full = "optax.adamw" if name == "adamw" else name
    parts += _of_optax(full, schedule, weight_decay, arguments)
  else:
    raise unknown_name("optimizer", name, (*OPTIMIZERS, "optax.NAME"))
  return optax.chain(*parts)


def _check_dot(arguments: Mapping[str, Any], nesterov: bool) -> None:
  """Raise a ConfigError for what the optimizer "dot" does not take."""
  if nesterov:
    raise ConfigError("nesterov=True: expected False with optimizer='dot', which is without")
  for name, value in arguments.items():
    if name != "delta":
      raise unknown_name("argument of optimizer 'dot'", name, ("delta",))
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ConfigError(f"delta={value!r}: expected a number")


def _of_optax(
  name: str, schedule: optax.Schedule, weight_decay: float, arguments: Mapping[str, Any]
) -> list[optax.GradientTransformation]:
  """Return an optimizer of optax, after its weight decay if it takes none itself."""
  if "weight_decay" in arguments:
    raise ConfigError(
      f"weight_decay={arguments['weight_decay']!r}: {name} gets it from the field weight_decay"
    )
  if optax_names.takes(name, "weight_decay"):
    arguments = {**arguments, "weight_decay": weight_decay}
    return [optax_names.optimizer_of(name, schedule, arguments)]
  decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
  return [*decay, optax_names.optimizer_of(name, schedule, arguments)]


def _refuse(arguments: Mapping[str, Any], given: str, wanted: str) -> None:
  """Raise a ConfigError if there are arguments for a name that takes none."""
  if arguments:
    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    raise ConfigError(f"arguments {listed}: {given} takes none; expected {wanted}")


def take_turns(
  optimizer: optax.GradientTransformation, turns: Sequence[str]
) -> optax.GradientTransformation:
  """Return an optimizer over {participant: parameters} that updates one participant at a time.

  Update t changes turns[t % len(turns)]. The others of `turns` stay exactly as they are, including
  momentum, weight decay and schedule: a schedule counts the participant's own updates, and one of
  n participants in turn makes 1/n of all updates. Participants that are not in `turns`, such as
  adapters, are updated every time.

  Each participant has its own optimizer: a clipped norm is that of its own gradient. State that is
  no parameter (batch statistics) is changed by the scheme, at every step.

  Args:
    optimizer: the optimizer of each participant.
    turns: names of participants; one may occur several times.

  Raises:
    ConfigError: if `turns` is empty, or the optimizer takes gradients by term; from `init`, if it
      names no learner.

  >>> optimizer = take_turns(optax.sgd(1.0), ["peer_0", "peer_1"])
  >>> gradients = {"peer_0": jnp.ones(()), "peer_1": jnp.ones(())}
  >>> updates, _ = optimizer.update(gradients, optimizer.init(gradients))
  >>> {name: float(update) for name, update in updates.items()}
  {'peer_0': -1.0, 'peer_1': 0.0}
  """
  if not turns:
    raise ConfigError("turns: expected at least one name, got none")
  if isinstance(optimizer, TermwiseTransformation):
    raise ConfigError(
      "optimizer='dot': expected another one where networks are updated in turn, as it takes the "
      "gradients of two sorts of terms"
    )

  def optimizer_of(name: str) -> optax.GradientTransformation:
    if name not in turns:
      return optimizer
    own_turns = [turn == name for turn in turns]
    return optax.transforms.conditionally_mask(
      optimizer, lambda count: jnp.asarray(own_turns)[count % len(own_turns)]
    )

  def init(learning: Any) -> Any:
    for name in turns:
      if name not in learning:
        raise unknown_name("participant in turns", name, learning)
    return {name: optimizer_of(name).init(params) for name, params in learning.items()}

  def update(gradients: Any, state: Any, learning: Any = None) -> tuple[Any, Any]:
    updates, after = {}, {}
    for name, gradient in gradients.items():
      params = None if learning is None else learning[name]
      updates[name], after[name] = optimizer_of(name).update(gradient, state[name], params)
    return updates, after

  return optax.GradientTransformation(init, update)
