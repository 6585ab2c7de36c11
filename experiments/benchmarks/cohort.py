"""The time of a training step of several peers over that of as many single networks' steps.

    python experiments/benchmarks/cohort.py

Deep mutual learning of `--peers` equal networks, against the same networks each in a supervised
step of its own, on the same batch and devices. Rounds alternate between the two, so that whatever
else the machine does hits both; the ratio is the median over the rounds.
"""

import json
import statistics
import time

import jax
import numpy as np
import optax
from absl import app, flags, logging

from jaxkd import models, schemes
from jaxkd.train import create_state, devices, training_step
from jaxkd.types import Batch, Scheme

_ROUNDS = flags.DEFINE_integer("rounds", 100, "Rounds that are timed.", lower_bound=1)
_PEERS = flags.DEFINE_integer("peers", 4, "Networks that learn together.", lower_bound=1)
_CPU_DEVICES = flags.DEFINE_integer("cpu_devices", 0, "XLA devices on the CPU; 0: one per core.")

# model, image shape, batch size
_SETTINGS = (
  ("resnet8_w4", (28, 28, 1), 64),
  ("resnet8", (32, 32, 3), 64),
)


def main(argv: list[str]) -> None:
  """Prints one JSON line per setting."""
  del argv
  logging.set_verbosity(logging.WARNING)
  devices.split_cpu(_CPU_DEVICES.value, 64)
  for model, shape, batch_size in _SETTINGS:
    together, apart = measure(model, shape, batch_size, _PEERS.value, _ROUNDS.value)
    ratios = [a / b for a, b in zip(together, apart, strict=True)]
    row = {
      "model": model,
      "image_shape": shape,
      "batch_size": batch_size,
      "peers": _PEERS.value,
      "together_ms": round(1000 * statistics.median(together), 2),
      "apart_ms": round(1000 * statistics.median(apart), 2),
      "cohort_over_parts": round(statistics.median(ratios), 3),
      "rounds": _ROUNDS.value,
      "device": jax.devices()[0].device_kind,
      "devices": jax.local_device_count(),
    }
    print(json.dumps(row), flush=True)


def measure(
  model: str, shape: tuple[int, int, int], batch_size: int, peers: int, rounds: int
) -> tuple[list[float], list[float]]:
  """Seconds of each step of all peers, and of each round of single steps, one per peer."""
  network = models.create(model, num_classes=10, axis_name=devices.AXIS_NAME)
  rng = np.random.default_rng(0)
  batch = Batch(
    rng.normal(size=(batch_size, *shape)).astype(np.float32),
    rng.integers(0, 10, batch_size).astype(np.int32),
    np.ones(batch_size, np.float32),
    np.arange(batch_size, dtype=np.int32),
  )
  names = [f"peer_{number}" for number in range(peers)]
  cohort = _Stepper(schemes.mutual(dict.fromkeys(names, network)), batch)
  single = _Stepper(schemes.supervised(network), batch)
  together, apart = [], []
  for number in range(-5, rounds):
    # Who goes first alternates: the second finds the caches as the first left them.
    order = [(cohort, 1, together), (single, peers, apart)]
    for stepper, steps, seconds in order if number % 2 else reversed(order):
      start = time.perf_counter()
      for _ in range(steps):
        stepper.step()
      if number >= 0:  # the first ones compile and warm up
        seconds.append(time.perf_counter() - start)
  return together, apart


class _Stepper:
  """A scheme's compiled step, and the state it has come to."""

  def __init__(self, scheme: Scheme, batch: Batch) -> None:
    everywhere = jax.local_devices()
    optimizer = optax.sgd(0.05, momentum=0.9)
    state = create_state(scheme, optimizer, jax.random.key(0), batch)
    self._state = devices.replicate(state, everywhere)
    self._batch = devices.shard(batch, everywhere)
    self._step = devices.map_training_step(
      training_step(scheme, optimizer, lambda keys, data: data, axis_name=devices.AXIS_NAME),
      everywhere,
      frozen=[],
    )

  def step(self) -> None:
    """Makes one update, and waits for it."""
    self._state, metrics = self._step(self._state, self._batch)
    jax.block_until_ready(metrics)


if __name__ == "__main__":
  app.run(main)
