"""The teachers and students whose training steps are timed, and our step of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import losses, methods, models
from jaxkd import networks as trees
from jaxkd.cache.split import split_loss
from jaxkd.experiment import build
from jaxkd.runtime import devices, mapping
from jaxkd.train import create_state, training_step
from jaxkd.types import Batch, Context, Scheme

CLASSES = 10
TEMPERATURE = 4.0
KD_WEIGHT, LABEL_WEIGHT = 0.9, 0.1
LEARNING_RATE, MOMENTUM = 0.05, 0.9


class Pair(NamedTuple):
  """Two networks of `jaxkd.models.create`, and the shape of their input."""

  teacher: str
  student: str
  image_shape: tuple[int, int, int]
  batch_size: int = 64


PAIRS = {
  "resnet32x4-resnet8x4": Pair("resnet32x4", "resnet8x4", (32, 32, 3)),
  "resnet20-resnet8": Pair("resnet20", "resnet8", (32, 32, 3)),
  # The pairs of experiments/studies/claims/config.py and configs/digits.py.
  "fashion": Pair("resnet20_w8_s2", "resnet8_w8_s2", (28, 28, 1)),
  "digits": Pair("resnet14_w8", "resnet8_w4", (8, 8, 1)),
}


def random_batch(image_shape: Sequence[int], batch_size: int) -> Batch:
  """Return noise with labels, as numpy arrays; always the same."""
  rng = np.random.default_rng(0)
  return Batch(
    rng.normal(size=(batch_size, *image_shape)).astype(np.float32),
    rng.integers(0, CLASSES, batch_size).astype(np.int32),
    np.ones(batch_size, np.float32),
    np.arange(batch_size, dtype=np.int32),
  )


def distilling(pair: Pair) -> Scheme:
  """Return the scheme of KD for the pair, as runs build it."""
  options = {"num_classes": CLASSES, "axis_name": mapping.AXIS_NAME}
  return methods.offline(
    models.create(pair.student, **options),
    {"teacher": models.create(pair.teacher, **options)},
    [methods.Distillation("kd", methods.per_example(losses.knowledge_distillation), KD_WEIGHT)],
    label_weight=LABEL_WEIGHT,
  )


def _chosen(scheme: Scheme, batch: Batch) -> Sequence[jax.Device]:
  count, *image_shape = batch.inputs.shape
  work = build.multiply_adds(scheme, tuple(image_shape))
  return devices.choose_devices(jax.local_devices(), [work], count)


class Stepper:
  """A scheme's mapped step as the training loop calls it, and its current state.

  Attributes:
    devices: devices that share the step.
  """

  def __init__(
    self,
    scheme: Scheme,
    batch: Batch,
    on: Sequence[jax.Device] | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    untrained: Sequence[str] = (),
    cached: bool = False,
  ) -> None:
    """Create the state; the step is compiled at its first call.

    Args:
      scheme: the scheme, trained by SGD with momentum.
      batch: batch of every step.
      on: devices that share the step; by default as an experiment chooses them.
      given: participants that start with these variables.
      untrained: frozen participants with random weights: a step takes the same time with them.
      cached: compute the cached targets here; the step reads them.
    """
    on = on or _chosen(scheme, batch)
    self.devices = list(on)
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    state = create_state(
      scheme, optimizer, jax.random.key(0), batch, given=given, untrained=untrained
    )
    self._state = mapping.replicate(state, on)
    self._batch = mapping.shard(batch, on)
    step = functools.partial(
      training_step, scheme, optimizer, lambda keys, data: data, axis_name=mapping.AXIS_NAME
    )
    self.function = step()
    if cached:
      loss_from_cache, stored = self._targets(scheme, on)
      with_stored = step(loss_from_cache=loss_from_cache)
      self._batch = self._batch, stored
      self.function = lambda state, fed: with_stored(state, *fed)
    frozen = trees.frozen(state.participants, scheme.learners)
    self._step = mapping.map_training_step(self.function, on, frozen=frozen)
    self._metrics: Any = None

  def _targets(self, scheme: Scheme, on: Sequence[jax.Device]) -> tuple[Callable[..., Any], Any]:
    """Return the loss by stored targets, and the batch's targets for each device."""
    people = self._state.participants
    part = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self._batch)
    context = Context(jax.random.key(0), jnp.int32(0), mapping.AXIS_NAME)
    parts = split_loss(scheme, people, part, context, axis_size=len(on))

    def reduced(people: Any, batch: Batch) -> Any:
      return parts.precompute(scheme.targets(people, batch))

    stored = mapping.map_over_examples(reduced, on)(people, self._batch)
    return parts.loss_from_cache, jax.device_get(stored)

  @property
  def participants(self) -> dict[str, Any]:
    """The variables of all participants, on the host."""
    return mapping.host_copy(self._state.participants)

  @property
  def loss(self) -> float:
    """The loss of the last step."""
    total, count = self._metrics["loss"]
    return float(total) / float(count)

  @property
  def arguments(self) -> tuple[Any, Any]:
    """The state and the batch of the next step."""
    return self._state, self._batch

  def step(self) -> None:
    """Make one update, and wait for it."""
    self._state, self._metrics = self._step(self._state, self._batch)
    jax.block_until_ready((self._state, self._metrics))
