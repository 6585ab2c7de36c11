"""The teachers and students whose training steps are timed, and our step of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxkd import losses, models, schemes
from jaxkd import participants as trees
from jaxkd.train import create_state, devices, training_step
from jaxkd.types import Batch, Scheme

CLASSES = 10
TEMPERATURE = 4.0
KD_WEIGHT, LABEL_WEIGHT = 0.9, 0.1
LEARNING_RATE, MOMENTUM = 0.05, 0.9


class Pair(NamedTuple):
  """Two networks of `jaxkd.models.create`, and what they are fed."""

  teacher: str
  student: str
  image_shape: tuple[int, int, int]
  batch_size: int = 64


PAIRS = {
  "resnet32x4-resnet8x4": Pair("resnet32x4", "resnet8x4", (32, 32, 3)),
  "resnet20-resnet8": Pair("resnet20", "resnet8", (32, 32, 3)),
  # Those of configs/claims.py and configs/digits.py.
  "fashion": Pair("resnet20_w8_s2", "resnet8_w8_s2", (28, 28, 1)),
  "digits": Pair("resnet14_w8", "resnet8_w4", (8, 8, 1)),
}


def random_batch(image_shape: Sequence[int], batch_size: int) -> Batch:
  """Noise with labels, as numpy arrays; always the same."""
  rng = np.random.default_rng(0)
  return Batch(
    rng.normal(size=(batch_size, *image_shape)).astype(np.float32),
    rng.integers(0, CLASSES, batch_size).astype(np.int32),
    np.ones(batch_size, np.float32),
    np.arange(batch_size, dtype=np.int32),
  )


def distilling(pair: Pair) -> Scheme:
  """KD of the pair, as `jaxkd.recipes` makes it."""
  options = {"num_classes": CLASSES, "axis_name": devices.AXIS_NAME}
  return schemes.offline(
    models.create(pair.student, **options),
    {"teacher": models.create(pair.teacher, **options)},
    [schemes.Distillation("kd", losses.knowledge_distillation, KD_WEIGHT)],
    label_weight=LABEL_WEIGHT,
  )


class Stepper:
  """A scheme's mapped step as the training loop calls it, and the state it has come to."""

  def __init__(
    self,
    scheme: Scheme,
    batch: Batch,
    on: Sequence[jax.Device],
    *,
    given: Mapping[str, Any] | None = None,
  ) -> None:
    """Makes the state; the step is compiled when it is first called.

    Args:
      scheme: what is trained, by SGD with momentum.
      batch: of every step.
      on: the devices that share it.
      given: participants that start with these variables.
    """
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    state = create_state(scheme, optimizer, jax.random.key(0), batch, given=given)
    self._state = devices.replicate(state, on)
    self._batch = devices.shard(batch, on)
    frozen = trees.frozen(state.participants, scheme.learners)
    self.function = training_step(
      scheme, optimizer, lambda keys, data: data, axis_name=devices.AXIS_NAME
    )
    self._step = devices.map_training_step(self.function, on, frozen=frozen)
    self._metrics: Any = None

  @property
  def participants(self) -> dict[str, Any]:
    """Everyone's variables, on the host."""
    return devices.host_copy(self._state.participants)

  @property
  def loss(self) -> float:
    """That of the last step."""
    total, count = self._metrics["loss"]
    return float(total) / float(count)

  @property
  def arguments(self) -> tuple[Any, Any]:
    """The state and the batch of the next step."""
    return self._state, self._batch

  def step(self) -> None:
    """Makes one update, and waits for it."""
    self._state, self._metrics = self._step(self._state, self._batch)
    jax.block_until_ready((self._state, self._metrics))
