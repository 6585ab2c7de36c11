"""Our training step against the same step written by hand for one method and one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import pairs
from benchmarks.alternating import alternate, compared, milliseconds
from benchmarks.pairs import PAIRS, Pair, Stepper
from jaxkd import models


def measure(
  names: Sequence[str] = tuple(PAIRS), *, rounds: int = 100, seconds: float = 15.0
) -> dict[str, Any]:
  """Return pair -> our step's time over the hand-written one's, on one device and as run.

  "ratio" compares equal steps on one device; "as_run" is our step on as many devices as an
  experiment chooses over the hand-written one on one device. Every step is waited for, so that the
  time of its dispatch counts in full.
  """
  return {name: _compare(PAIRS[name], rounds, seconds) for name in names}


def _compare(pair: Pair, rounds: int, seconds: float) -> dict[str, Any]:
  batch = pairs.random_batch(pair.image_shape, pair.batch_size)
  scheme = pairs.distilling(pair)
  ours = Stepper(scheme, batch, jax.local_devices()[:1], untrained=("teacher",))
  people = ours.participants
  hand = _ByHand(pair, people)
  contestants = {"ours": ours.step, "by_hand": lambda: hand.step(batch.inputs, batch.labels)}
  mapped = Stepper(scheme, batch, given=people)
  if mapped.devices[1:]:
    contestants["mapped"] = mapped.step
  found = alternate(contestants, rounds=rounds, seconds=seconds, warmup=3)
  # The times compare the same work only if both compute the same.
  np.testing.assert_allclose(ours.loss, hand.loss, rtol=1e-2)
  row = compared(found, "ours", "by_hand")
  row |= {f"{name}_ms": milliseconds(times) for name, times in found.items()}
  if "mapped" in found:
    row["as_run"] = compared(found, "mapped", "by_hand")["ratio"]
  return row | {"devices": len(mapped.devices)}


class _ByHand:
  """The hand-written step and its current state."""

  def __init__(self, pair: Pair, people: Mapping[str, Any]) -> None:
    teacher, student = (
      models.create(name, num_classes=pairs.CLASSES) for name in (pair.teacher, pair.student)
    )
    own = [jax.tree.map(jnp.array, people["student"][k]) for k in ("params", "batch_stats")]
    self._state = (*own, jax.tree.map(jnp.zeros_like, own[0]))
    self._frozen = jax.tree.map(jnp.array, people["teacher"])
    self._step = handwritten_step(teacher, student)
    self._loss: Any = None

  @property
  def loss(self) -> float:
    return float(self._loss)

  def step(self, images: Any, labels: Any) -> None:
    self._state, self._loss = self._step(self._state, self._frozen, images, labels)
    jax.block_until_ready((self._state, self._loss))


def handwritten_step(teacher: Any, student: Any) -> Any:
  """Return the step as written by hand for this one method."""
  temperature = pairs.TEMPERATURE

  def step(state, frozen, images, labels):
    params, stats, momentum = state
    targets = teacher.apply(frozen, images, train=False).logits

    def loss_of(params):
      output, changes = student.apply(
        {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
      )
      log_p = jax.nn.log_softmax(output.logits / temperature)
      log_q = jax.nn.log_softmax(targets / temperature)
      soft = temperature**2 * (jnp.exp(log_q) * (log_q - log_p)).sum(-1).mean()
      hard = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels).mean()
      return pairs.KD_WEIGHT * soft + pairs.LABEL_WEIGHT * hard, changes["batch_stats"]

    (loss, new_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    momentum = jax.tree.map(lambda m, g: pairs.MOMENTUM * m + g, momentum, grads)
    params = jax.tree.map(lambda p, m: p - pairs.LEARNING_RATE * m, params, momentum)
    return (params, new_stats, momentum), loss

  return jax.jit(step, donate_argnums=0)
