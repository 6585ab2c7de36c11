"""The training step of every scheme, and the evaluation step.

Both are per-device functions with a named axis; `jaxkd.runtime.mapping` maps them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxkd import networks as trees
from jaxkd.counts import class_weighted, whole_counts
from jaxkd.data.keys import view_keys
from jaxkd.errors import ConfigError
from jaxkd.evaluate import multi_label
from jaxkd.evaluate.metrics import score
from jaxkd.train import step_guard
from jaxkd.train.by_term import TermwiseTransformation, gradients_by_term, whole_gradient
from jaxkd.train.state import TrainState
from jaxkd.types import MEMORY, Array, Aux, Batch, Context, Participants, Scheme

# (one key per image, batch as stored) -> batch as the networks see it.
Prepare = Callable[[Array, Batch], Batch]
Metrics = dict[str, tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """Options of a training step.

  Attributes:
    axis_name: the device axis, or None for an unmapped step.
    accumulate: number of parts into which each device's batch is cut to save memory. Loss and
      gradients are those of the whole batch, for any distribution of labels and padding over the
      parts; a loss that compares examples with each other is refused. Batch statistics are those
      of a part, and are updated once per part.
    average_decay: decay of the exponential moving average of the learners' parameters.
    views: number of augmentations of each example, used in turn, one per epoch; 0 draws a new one
      each time.
    loss_from_cache: the loss from the stored part of its targets, a method of
      `jaxkd.cache.split.SplitLoss`, for batches of each device's size, or of a part of it.
    label_smoothing: as `Context.label_smoothing`.
    class_weights: as `Context.class_weights`.
  """

  axis_name: str | None
  accumulate: int = 1
  average_decay: float | None = None
  views: int = 0
  loss_from_cache: Callable[..., tuple[Array, Aux]] | None = None
  label_smoothing: float = 0.0
  class_weights: tuple[float, ...] = ()


def training_step(
  scheme: Scheme,
  optimizer: optax.GradientTransformation,
  prepare: Prepare,
  *,
  axis_name: str | None,
  accumulate: int = 1,
  average_decay: float | None = None,
  views: int = 0,
  loss_from_cache: Callable[..., tuple[Array, Aux]] | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """A step that makes one update of all learners from one batch.

  Targets are computed outside the differentiated function. Gradients, the learners' new
  non-parameter state and the metrics are pooled over `axis_name`, so that replicas stay equal.

  If a metric, a gradient or a learner after the update is not finite (`jaxkd.train.step_guard`),
  the step is counted and nothing else changes.

  Args:
    scheme: the participants and their losses.
    optimizer: over the learners' parameters; a `jaxkd.train.by_term.TermwiseTransformation` gets
      the gradient of the labels' terms and that of the other terms.
    prepare: normalisation and augmentation, on the device. Its keys depend on the step and an
      image's position in the global batch, or with `views` on the example and the view, so that
      results do not depend on the number of devices.
    axis_name: see `StepOptions`, as for all that follow.
    accumulate: parts of each device's batch.
    average_decay: decay of the moving average.
    views: augmentations of each example.
    loss_from_cache: the loss of cached targets.

  Raises:
    ConfigError: when traced, naming the loss, if it cannot be computed on parts; if the batch of a
      device is no multiple of them.

  Returns:
    (state, batch, stored) -> (state, metrics), metrics as name -> (sum, count). With
    `loss_from_cache`, `stored` is what `jaxkd.cache.targets` keeps for the batch's examples, and
    targets are not computed.
  """
  options = StepOptions(axis_name, accumulate, average_decay, views, loss_from_cache)
  step = monitored_step(scheme, optimizer, prepare, options)

  def unmonitored(
    state: TrainState, batch: Batch, stored: Any = None
  ) -> tuple[TrainState, Metrics]:
    state, (metrics, _) = step(state, batch, stored)
    return state, metrics

  return unmonitored


def monitored_step(
  scheme: Scheme,
  optimizer: optax.GradientTransformation,
  prepare: Prepare,
  options: StepOptions,
) -> Callable[..., tuple[TrainState, tuple[Metrics, dict[str, step_guard.Learner]]]]:
  """The step of `training_step`, which also returns `jaxkd.train.step_guard.learner_faults`.

  Returns:
    (state, batch, stored) -> (state, (metrics, participant -> Learner)).
  """
  axis_name, parts = options.axis_name, options.accumulate
  by_term = isinstance(optimizer, TermwiseTransformation)
  gradient = _gradient(scheme, options, by_term=by_term)

  def step(state: TrainState, batch: Batch, stored: Any = None):
    image_keys, loss_key = _keys(state, batch, options)
    batch = prepare(image_keys, batch)
    context = Context(
      loss_key,
      state.step,
      axis_name,
      parts,
      whole_counts(class_weighted(batch, options.class_weights), parts=parts, axis_name=axis_name),
      label_smoothing=options.label_smoothing,
      class_weights=options.class_weights,
    )
    learning = trees.select(state.participants, scheme.learners)

    if parts == 1:
      grads, (changes, metrics) = gradient(state.participants, learning, batch, stored, context)
    else:
      grads, changes, metrics = _accumulated(
        gradient, state.participants, learning, (batch, stored), context
      )
    if axis_name:
      grads = lax.pmean(grads, axis_name)
      changes = _pool_state(changes, axis_name)
      metrics = lax.psum(metrics, axis_name)

    updates, optimizer_state = optimizer.update(grads, state.optimizer, learning)
    learning = optax.apply_updates(learning, updates)
    whole = whole_gradient(grads) if by_term else grads
    metrics["gradient_norm"] = (optax.tree.norm(whole), jnp.float32(1))
    average = state.average
    if options.average_decay is not None:
      average = optax.incremental_update(learning, average, 1 - options.average_decay)
    participants = trees.update(trees.merge(state.participants, learning), changes)
    after = TrainState(state.step, state.rng, participants, optimizer_state, average)

    learners = step_guard.learner_faults(whole, changes, learning)
    after = step_guard.select(step_guard.is_finite(metrics, learners), after, state)
    return dataclasses.replace(after, step=state.step + 1), (metrics, learners)

  return step


def evaluation_step(
  predict: Callable[[Participants, Array], dict[str, Array]],
  prepare: Callable[[Batch], Batch],
  *,
  axis_name: str | None,
  reference: Callable[[Participants, Array], Array] | None = None,
) -> Callable[[Participants, Batch], dict[str, Metrics]]:
  """A step that scores every named predictor on one batch, pooled over the devices.

  With a `reference`, a further metric is "agreement", the share of equal predictions with it.

  Returns:
    (participants, batch) -> {predictor: {metric: (sum, count)}}; padding (weight 0) does not count.
    For multi-hot labels the mean average precision is given as the arrays that it needs.
  """

  def step(participants: Participants, batch: Batch) -> dict[str, Metrics]:
    batch = prepare(batch)
    logits = predict(participants, batch.inputs)
    scored = multi_label.multi_label_score if batch.multi_label else score
    labels: Any = batch.labels, batch.weights
    scores: dict[str, Any] = {
      name: scored(z, *labels, where=batch.mask) for name, z in logits.items()
    }
    if reference is not None:
      classes = reference(participants, batch.inputs).argmax(axis=-1)
      for name, z in logits.items():
        agreed = score(z, classes, batch.weights, where=batch.mask)
        scores[name]["agreement"] = agreed["accuracy"]
    scores = lax.psum(scores, axis_name) if axis_name else scores
    if batch.multi_label:
      for name, z in logits.items():
        arrays = multi_label.gathered(z, *labels, where=batch.mask, axis_name=axis_name)
        scores[name][multi_label.MEAN_AVERAGE_PRECISION] = arrays
    return scores

  return step


def _keys(state: TrainState, batch: Batch, options: StepOptions) -> tuple[Array, Array]:
  """Return the keys of augmentation, one per image, and the key of this device's loss."""
  step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  device = lax.axis_index(options.axis_name) if options.axis_name else 0
  image_key, loss_key = jax.random.split(step_key)
  if options.views:
    image_keys = view_keys(state.rng, batch, options.views)
  else:
    position = device * len(batch.indices) + jnp.arange(len(batch.indices))
    image_keys = jax.vmap(jax.random.fold_in, (None, 0))(image_key, position)
  return image_keys, jax.random.fold_in(loss_key, device)


def _gradient(scheme: Scheme, options: StepOptions, *, by_term: bool) -> Callable[..., Any]:
  """(participants, learning, batch, stored, context) -> (gradients, (new state, metrics))."""

  def gradient(
    participants: Participants,
    learning: Participants,
    batch: Batch,
    stored: Any,
    context: Context,
  ):
    if options.loss_from_cache is None:
      objective, targets = scheme.loss, lax.stop_gradient(scheme.targets(participants, batch))
    else:
      objective, targets = options.loss_from_cache, stored
    differentiate = (
      functools.partial(gradients_by_term, objective)
      if by_term
      else jax.value_and_grad(objective, has_aux=True)
    )
    (loss, aux), grads = differentiate(learning, participants, batch, targets, context)
    unexpected = trees.frozen(aux.state, scheme.learners)
    if unexpected:
      raise ValueError(f"the scheme's loss changes the state of {unexpected}, which do not learn")
    return grads, lax.stop_gradient((aux.state, _metrics(loss, aux)))

  return gradient


def _metrics(loss: Array, aux: Aux) -> Metrics:
  one = jnp.float32(1)
  metrics = {"loss": (loss.astype(jnp.float32), one), **aux.metrics}
  for name, terms in aux.terms.items():
    for kind in ("feature", "logit"):
      value = getattr(terms, kind)
      # A term that a loss does not have is a Python zero; one that happens to be 0 is an array.
      if isinstance(value, jax.Array):
        metrics[f"{name}_{kind}"] = (value.astype(jnp.float32), one)
  return metrics


def _pool_state(changes: Participants, axis_name: str) -> Participants:
  """The mean over devices of statistics; what a module keeps in `MEMORY` is equal on all."""

  def pool(leaf: Array) -> Array:
    # Counters and flags are functions of the step alone and already agree.
    return lax.pmean(leaf, axis_name) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

  return {
    name: {
      collection: tree if collection == MEMORY else jax.tree.map(pool, tree)
      for collection, tree in state.items()
    }
    for name, state in changes.items()
  }


def _accumulated(
  gradient: Callable[..., Any],
  participants: Participants,
  learning: Participants,
  fed: tuple[Batch, Any],
  context: Context,
) -> tuple[Participants, Participants, Metrics]:
  """Return the gradient averaged over `context.parts` slices of the batch, computed in sequence."""
  size, parts = len(fed[0].indices), context.parts
  if size % parts:
    raise ConfigError(f"accumulate={parts}: expected a divisor of the {size} examples of a device")

  def cut(leaf: Array) -> Array:
    return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

  def one_part(changes: Participants, part: tuple[Batch, Any], number: Array):
    rng = jax.random.fold_in(context.rng, number)
    grads, (changes, metrics) = gradient(
      trees.update(participants, changes), learning, *part, dataclasses.replace(context, rng=rng)
    )
    return changes, grads, metrics

  def next_part(carry, part_and_number: tuple[tuple[Batch, Any], Array]):
    changes, grads, metrics = one_part(carry[0], *part_and_number)
    return (changes, *jax.tree.map(jnp.add, carry[1:], (grads, metrics))), None

  numbered = (jax.tree.map(cut, fed), jnp.arange(parts))
  # The first part runs outside the loop, to find out which state changes: the loop's carry.
  carry = one_part({}, *jax.tree.map(lambda leaf: leaf[0], numbered))
  rest = jax.tree.map(lambda leaf: leaf[1:], numbered)
  (changes, grads, metrics), _ = lax.scan(next_part, carry, rest)
  return jax.tree.map(lambda g: g / parts, grads), changes, metrics
