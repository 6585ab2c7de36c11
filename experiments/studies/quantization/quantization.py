"""Students of 8 and 4 bits: rounded afterwards, or trained for it, alone and under a teacher.

    python experiments/studies/quantization/quantization.py --config configs/digits.py:kd \
        --workdir runs/quantization --output FILE

For every seed a teacher is trained, and a student alone and under that teacher: in floating point,
with `student.quantize=int8`, and with `student.quantize=int4`. The students in floating point are
also rounded afterwards, with the ranges that training images have. All differences are paired by
seed with the distilled student in floating point. The same command resumes.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np

from jaxkd import data, report
from jaxkd.experiment import overrides, run
from jaxkd.export import bundles, scores
from jaxkd.models import PRECISIONS
from jaxkd.models.compose.quantized import calibrated
from jaxkd.report import stats
from jaxkd.types import Network

# Training images whose ranges a network that is rounded afterwards takes.
CALIBRATION, BATCH = 256, 64
STUDENTS = {"alone": "alone", "distilled": "under the teacher"}


def settings_of(
  config: str, seed: int, precision: str, teacher: pathlib.Path | None
) -> ml_collections.ConfigDict:
  """Return the config of one run; a teacher in place of one of its own if a bundle is given."""
  settings = overrides.from_text(config)
  settings.seed, settings.student.quantize, settings.baseline = seed, precision, True
  if teacher is not None:
    settings.teacher.bundle, settings.teacher.rescore = str(teacher), False
  return settings


def rounded_afterwards(
  network: Network, precision: str, dataset: data.Dataset, seed: int
) -> Network:
  """Round a trained network with the ranges of some training images."""
  prepare = scores.preparation(network, dataset)
  drawn = np.random.default_rng(seed).permutation(len(dataset.train))
  images = prepare(dataset.train.fetch(drawn[:CALIBRATION]))
  return calibrated(
    network, precision, (images[i : i + BATCH] for i in range(0, len(images), BATCH))
  )


def arms(config: str, workdir: pathlib.Path, seed: int) -> Iterator[tuple[tuple[str, str], float]]:
  """Yield (precision, student) and test accuracy of every network of a seed, in percent."""
  teacher: pathlib.Path | None = None
  load = functools.cache(data.load)
  for precision in ("none", *PRECISIONS):
    settings = settings_of(config, seed, precision, teacher)
    place = workdir / f"seed{seed}" / precision
    summary = run.run(settings, place)
    teacher = teacher or place / "bundles/teacher/teacher"
    for student in STUDENTS:
      called = "float" if precision == "none" else f"{precision}, trained for it"
      yield (called, student), 100 * summary["stages"][student]["accuracy"]
  dataset = load(settings.data.name, directory=settings.data.directory or None)
  for precision in PRECISIONS:
    for student in STUDENTS:
      network, _ = bundles.load_bundle(workdir / f"seed{seed}/none/bundles/{student}/student")
      found = rounded_afterwards(network, precision, dataset, seed)
      accuracy = scores.score_network(found, dataset)["accuracy"]
      yield (f"{precision}, rounded afterwards", student), 100 * accuracy


def table(found: dict[tuple[str, str], list[float]]) -> str:
  """Return the Markdown table of the arms over the seeds."""
  reference = found["float", "distilled"]
  lines = [
    "| weights | student | accuracy % | minus float under the teacher |",
    "|---|---|---|---|",
  ]
  for called in dict.fromkeys(name for name, _ in found):
    for student, words in STUDENTS.items():
      values = found[called, student]
      mean = stats.mean_interval(values)
      cells = [called, words, f"{mean.mean:.2f} ± {mean.high - mean.mean:.2f}"]
      difference = stats.paired_difference(values, reference)
      same = values is reference
      cells.append(
        "" if same else f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
      )
      lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  """Train, round, and write the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/digits.py:kd")
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/quantization"))
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--output", type=pathlib.Path)
  options = parser.parse_args()
  if options.seeds < 2:
    parser.error(f"--seeds={options.seeds}: expected 2 or more, for an interval")
  found: dict[tuple[str, str], list[float]] = {}
  for seed in range(options.seeds):
    for arm, accuracy in arms(options.config, options.workdir, seed):
      found.setdefault(arm, []).append(accuracy)
    jax.clear_caches()
  head = (
    f"{options.config}, seeds 0 to {options.seeds - 1}; means with 95% intervals of Student's t, "
    "differences paired by seed. int4 is 4 bits of weights and 8 of activations.\n\n"
  )
  text = head + table(found)
  print(text)
  if options.output:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report.write_atomically(options.output, text)


if __name__ == "__main__":
  main()
