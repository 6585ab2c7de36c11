"""Profile steps and losses on one core, to explain the goals that `make bench` misses.

    python experiments/studies/bench/bench_profiles.py --output bench_profiles.md

With several threads XLA's work on a convolution appears in no profile, so both libraries use one
thread here. Steps are those of `make bench`, ours and PyTorch's; losses are ours, forward and
backward.
"""

import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

from jaxkd.errors import needed_by_script

with needed_by_script("experiments/studies/bench/bench_profiles.py", extra="bench"):
  import jax
  import numpy as np
  import torch
  from absl import app, flags
  from benchmarks import loss_cases, machine, pairs, profiles
  from benchmarks.against_pytorch import torch_step
  from rich.console import Console

  from jaxkd import report
  from jaxkd.runtime import memory

_OUTPUT = flags.DEFINE_string("output", None, "File of the tables, in Markdown.")
_BATCH = flags.DEFINE_integer("batch", 256, "Of the losses.", lower_bound=1)
_CALLS = flags.DEFINE_integer("calls", 10, "Of each, of which the mean counts.", lower_bound=1)
_LIBRARY = "YNNPACK's convolutions, products and sums"
_KINDS = ("convolutions", "their gradients", "matrix products", _LIBRARY, profiles.REST)


def main(argv: list[str]) -> None:
  """Profile all steps and losses and print the tables."""
  del argv
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
  torch.set_num_threads(1)
  memory.tune_malloc()
  steps = [row for name in pairs.PAIRS for row in _steps(name)]
  losses = [_loss(name) for name in loss_cases.CASES]
  traffic = (*_KINDS[2:], "bytes touched / least")
  text = "\n\n".join(
    [
      "Milliseconds of one step of 64 images on one core.",
      _table("step", _KINDS, steps),
      f"Milliseconds of a loss and its gradient, {_BATCH.value} examples, on one core; and the "
      "bytes that its program reads and writes by XLA's count, over arguments and gradients.",
      _table("loss", traffic, losses),
      f"jax {jax.__version__}, torch {torch.__version__}, {machine.machine()['processor']}.",
    ]
  )
  Console().print(text, soft_wrap=True, highlight=False, markup=False)
  if _OUTPUT.value:
    command = f"python experiments/studies/bench/bench_profiles.py {' '.join(sys.argv[1:])}"
    report.write_atomically(pathlib.Path(_OUTPUT.value), f"Written by `{command}`.\n\n{text}\n")


def _steps(name: str) -> list[tuple[str, dict[str, float]]]:
  """Return our step of a pair, ours with cached targets, and PyTorch's."""
  pair = pairs.PAIRS[name]
  batch = pairs.random_batch(pair.image_shape, pair.batch_size)
  here = jax.local_devices()[:1]
  whole, cached = (
    pairs.Stepper(pairs.distilling(pair), batch, here, untrained=("teacher",), cached=cached)
    for cached in (False, True)
  )
  theirs = torch_step(pair, whole.participants, channels_last=True)
  images = torch.from_numpy(np.ascontiguousarray(batch.inputs.transpose(0, 3, 1, 2)))
  labels = torch.from_numpy(batch.labels.astype(np.int64))
  return [
    (f"{name}, ours", profiles.of_xla(whole.step, _CALLS.value)),
    (f"{name}, cached targets", profiles.of_xla(cached.step, _CALLS.value)),
    (f"{name}, PyTorch", profiles.of_torch(lambda: theirs.step(images, labels), _CALLS.value)),
  ]


def _loss(name: str) -> tuple[str, dict[str, float]]:
  case = loss_cases.CASES[name]
  students, teachers, labels = loss_cases.arrays_of(case, _BATCH.value)
  arguments = jax.device_put((dict(students), dict(teachers), labels))
  compiled = jax.jit(loss_cases.value_and_gradient(case)).lower(*arguments).compile()
  found = profiles.of_xla(lambda: jax.block_until_ready(compiled(*arguments)), _CALLS.value)
  least = sum(2 * s.nbytes + teachers[key].nbytes for key, s in students.items())
  touched = (compiled.cost_analysis() or {}).get("bytes accessed", float("nan"))
  return name, found | {"bytes touched / least": touched / least}


def _table(
  head: str, columns: Sequence[str], rows: Sequence[tuple[str, Mapping[str, float]]]
) -> str:
  """Return a Markdown table; operations that do not occur have 0."""
  lines = [f"| {head} | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
  for name, found in rows:
    cells = (f"{found.get(column, 0.0):.2f}" for column in columns)
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  app.run(main)
