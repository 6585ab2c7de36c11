"""The time of jaxkd's training step over that of the same step written by hand.

    python experiments/benchmarks/step.py

Both distil the same teacher into the same student (KD, SGD with momentum) on one device, on the
same batches. Steps alternate, so that whatever else the machine does hits both; the ratio is the
median over the pairs.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from jaxkd import losses, models, schemes
from jaxkd.train import create_state, devices, training_step
from jaxkd.types import Batch

_PAIRS = flags.DEFINE_integer("pairs", 100, "Pairs of steps that are timed.", lower_bound=1)

# teacher, student, image shape, batch size
_SETTINGS = (
  ("resnet14_w8", "resnet8_w4", (8, 8, 1), 64),
  ("resnet20", "resnet8", (28, 28, 1), 64),
)


def main(argv: list[str]) -> None:
  """Prints one JSON line per setting."""
  del argv
  logging.set_verbosity(logging.WARNING)
  for teacher, student, shape, batch_size in _SETTINGS:
    ours, by_hand = measure(teacher, student, shape, batch_size, _PAIRS.value)
    ratios = [a / b for a, b in zip(ours, by_hand, strict=True)]
    row = {
      "teacher": teacher,
      "student": student,
      "image_shape": shape,
      "batch_size": batch_size,
      "ours_ms": round(1000 * statistics.median(ours), 2),
      "by_hand_ms": round(1000 * statistics.median(by_hand), 2),
      "step_over_handwritten": round(statistics.median(ratios), 3),
      "pairs": _PAIRS.value,
      "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(row), flush=True)


def measure(
  teacher_name: str, student_name: str, shape: tuple[int, int, int], batch_size: int, pairs: int
) -> tuple[list[float], list[float]]:
  """Seconds of each of our steps and of each hand-written step."""
  options = {"num_classes": 10, "axis_name": devices.AXIS_NAME}
  teacher, student = models.create(teacher_name, **options), models.create(student_name, **options)
  scheme = schemes.offline(
    student,
    {"teacher": teacher},
    [schemes.Distillation("kd", losses.knowledge_distillation, 0.9)],
    label_weight=0.1,
  )
  optimizer = optax.sgd(0.05, momentum=0.9)
  rng = np.random.default_rng(0)
  batch = Batch(
    rng.normal(size=(batch_size, *shape)).astype(np.float32),
    rng.integers(0, 10, batch_size).astype(np.int32),
    np.ones(batch_size, np.float32),
    np.arange(batch_size, dtype=np.int32),
  )
  one = jax.local_devices()[:1]
  state = devices.replicate(create_state(scheme, optimizer, jax.random.key(0), batch), one)
  people = devices.host_copy(state.participants)
  step = devices.map_training_step(
    training_step(scheme, optimizer, lambda keys, data: data, axis_name=devices.AXIS_NAME),
    one,
    frozen=["teacher"],
  )
  hand_step = handwritten_step(
    models.create(teacher_name, num_classes=10), models.create(student_name, num_classes=10)
  )
  params, stats = (jax.tree.map(jnp.array, people["student"][k]) for k in ("params", "batch_stats"))
  hand_state = (params, stats, jax.tree.map(jnp.zeros_like, params))
  frozen = jax.tree.map(jnp.array, people["teacher"])
  sharded = devices.shard(batch, one)

  def step_ours() -> None:
    nonlocal state, metrics
    state, metrics = step(state, sharded)
    jax.block_until_ready(metrics)

  def step_by_hand() -> None:
    nonlocal hand_state, loss
    hand_state, loss = hand_step(hand_state, frozen, batch.images, batch.labels)
    jax.block_until_ready(loss)

  metrics = loss = None
  ours, by_hand = [], []
  for pair in range(-5, pairs):
    # Who goes first alternates: the second finds the caches as the first left them.
    order = [(step_ours, ours), (step_by_hand, by_hand)]
    for run, seconds in order if pair % 2 else reversed(order):
      start = time.perf_counter()
      run()
      if pair >= 0:  # the first ones compile and warm up
        seconds.append(time.perf_counter() - start)
  total, count = metrics["loss"]
  # The timings compare the same work only if both still compute the same thing.
  np.testing.assert_allclose(total / count, loss, rtol=1e-2)
  return ours, by_hand


def handwritten_step(teacher, student):
  """What someone would write who needs this one method and nothing else."""

  @jax.jit
  def step(state, frozen, images, labels):
    params, stats, momentum = state
    targets = teacher.apply(frozen, images, train=False).logits

    def loss_of(params):
      output, changes = student.apply(
        {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
      )
      log_p = jax.nn.log_softmax(output.logits / 4)
      log_q = jax.nn.log_softmax(targets / 4)
      soft = 16 * (jnp.exp(log_q) * (log_q - log_p)).sum(-1).mean()
      hard = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels).mean()
      return 0.9 * soft + 0.1 * hard, changes["batch_stats"]

    (loss, new_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
    params = jax.tree.map(lambda p, m: p - 0.05 * m, params, momentum)
    return (params, new_stats, momentum), loss

  return step


if __name__ == "__main__":
  app.run(main)
