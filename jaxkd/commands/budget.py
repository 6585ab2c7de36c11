"""Evaluate prediction under a budget, with the multi-exit network of a finished run.

    jaxkd budget --run runs/fashion-exits --output exits.md

Prints accuracy and cost of each exit; fits confidence thresholds to the validation split for
several average budgets and applies them to the test split; and times inference that stops at the
chosen exit, beside the whole network. Writes budget.json and budget.png to the run's directory.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd budget"):
  import jax
  import jax.numpy as jnp
  import numpy as np
  from absl import flags, logging
  from ml_collections import ConfigDict
  from rich.console import Console

  from jaxkd import commands, data, evaluate, models, report
  from jaxkd.errors import ConfigError
  from jaxkd.experiment import build
  from jaxkd.export import bundles
  from jaxkd.types import Array, Batch

FLAGS = flags.FlagValues()

_RUN = flags.DEFINE_string(
  "run", None, "The run's work directory.", required=True, flag_values=FLAGS
)
_BUDGETS = flags.DEFINE_integer(
  "budgets",
  8,
  "Number of budgets, evenly from the first exit's cost to the last's.",
  lower_bound=2,
  flag_values=FLAGS,
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "Timings of each budget, taken in turn.", lower_bound=1, flag_values=FLAGS
)
_IMAGES = flags.DEFINE_integer(
  "images", 2048, "Test images to time.", lower_bound=1, flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer("batch", 256, "Largest batch.", lower_bound=1, flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Also write the tables to this Markdown file.", flag_values=FLAGS
)
_ALLOW = flags.DEFINE_list(
  "allow_import", [], "Packages whose code the bundle may import, such as mypkg.", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
  """Measure the run's network; print and write the results."""
  if len(argv) > 1:
    raise ConfigError(f"unexpected argument {argv[1]!r}: every setting is a --flag")
  logging.set_verbosity(logging.WARNING)
  run, console = pathlib.Path(_RUN.value), Console()
  model, variables, config = load_run(run, allow=_ALLOW.value)
  examples = load_data(config)
  results = measure(
    model,
    variables,
    examples,
    budgets=_BUDGETS.value,
    rounds=_ROUNDS.value,
    images=_IMAGES.value,
    batch_size=_BATCH.value,
  )
  text = tables(results)
  console.print(text, soft_wrap=True, highlight=False, markup=False)
  report.write_atomically(run / "budget.json", json.dumps(results, indent=2) + "\n")
  report.draw_budget_curves(
    run / "budget.png",
    results["anytime"],
    results["budgeted"],
    f"{config['method']['name']} on {config['data']['name']}, seed {config['seed']}",
    full=results["full"],
  )
  if _OUTPUT.value:
    command = commands.written_by("budget")
    report.write_atomically(pathlib.Path(_OUTPUT.value), f"Written by `{command}`.\n\n{text}\n")


def load_run(
  run: pathlib.Path, *, allow: Sequence[str] = ()
) -> tuple[Any, Mapping[str, Any], Mapping[str, Any]]:
  """Return the multi-exit model of a run's last stage, its variables, and the run's config."""
  try:
    summary = json.loads((run / "summary.json").read_text())
    config, stage = summary["config"], list(summary["stages"])[-1]
  except OSError as error:
    raise ConfigError(f"run={str(run)!r}: no summary.json there, so no finished run") from error
  except (ValueError, KeyError, TypeError, IndexError) as error:
    raise ConfigError(f"{run / 'summary.json'} is damaged: {error!r}") from error
  path = run / "bundles" / stage / "ensemble"
  if not path.is_dir():
    raise ConfigError(
      f"run={str(run)!r}: its last stage, {stage!r}, left no predictor 'ensemble'; "
      "expected a run of a method with several exits"
    )
  network, _ = bundles.load_bundle(path, allow=allow)
  try:
    return *models.exits_inside(network), config
  except ConfigError as error:
    raise ConfigError(f"bundle {path} holds {error}") from error


def load_data(config: Mapping[str, Any]) -> data.Dataset:
  """Return the run's data set, with the validation split that it was not trained on."""
  section = config["data"]
  if not section["validation"]:
    raise ConfigError(
      f"data.validation={section['validation']!r}: thresholds are fitted to a validation split, "
      "expected a run that held one out"
    )
  return build.dataset(ConfigDict(config), data.load)


def measure(
  model: Any,
  variables: Any,
  examples: data.Dataset,
  *,
  budgets: int,
  rounds: int,
  images: int,
  batch_size: int,
) -> dict[str, Any]:
  """Return accuracies, costs and times, as budget.json holds them.

  Args:
    model: a multi-exit model.
    variables: its Flax variables.
    examples: data set with a validation split.
    budgets: number of budgets.
    rounds: timings of each budget.
    images: number of test images that are timed.
    batch_size: largest batch.
  """
  shape, validation = examples.image_shape, examples.validation
  if shape is None or validation is None:
    raise ConfigError(f"data set {examples.name!r}: expected images, with a validation split")

  def prepare(batch: Batch) -> Batch:
    pixels = data.normalize(batch.inputs, examples.mean, examples.std)
    return Batch(pixels, batch.labels, batch.weights, batch.indices)

  def batches() -> Any:
    for split in (validation, examples.test):
      yield from data.evaluation_batches(split, batch_size=batch_size)

  costs = evaluate.exit_costs(model, variables, shape)
  # Both splits in one pass: the network is compiled once.
  logits, labels = evaluate.exit_logits(model, variables, batches(), prepare)
  fitted_to, tested = np.split(logits, [len(validation)])
  _, truth = np.split(labels, [len(validation)])
  asked = [float(budget) for budget in np.linspace(costs[0], costs[-1], budgets)]
  budgeted = evaluate.budgeted_curve(fitted_to, tested, truth, costs, asked)

  stored = examples.test.fetch(np.arange(min(images, len(examples.test))))
  pixels = np.asarray(data.normalize(jnp.asarray(stored), examples.mean, examples.std))
  full, milliseconds = times(
    model, variables, pixels, [row["thresholds"] for row in budgeted], rounds, batch_size
  )
  for row, taken in zip(budgeted, milliseconds, strict=True):
    row["milliseconds"] = taken
    # JSON has no infinity; float("inf") reads the text.
    row["thresholds"] = [t if np.isfinite(t) else str(t) for t in row["thresholds"]]
  one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  return {
    "anytime": evaluate.anytime_curve(tested, truth, costs),
    "budgeted": budgeted,
    "full": {
      "multiply_adds": evaluate.multiply_adds(last_exit(model), variables, one),
      "accuracy": float((tested[:, -1].argmax(axis=-1) == truth).mean()),
      "milliseconds": full,
    },
    "timed_images": len(pixels),
    "device": jax.devices()[0].device_kind,
  }


def times(
  model: Any,
  variables: Any,
  pixels: np.ndarray,
  thresholds: Sequence[Sequence[float]],
  rounds: int,
  batch_size: int,
) -> tuple[float, list[float]]:
  """Return milliseconds per 1000 images: of the whole network, and of early exit by thresholds.

  Everything is compiled before. The times are medians over rounds in which all take turns, so that
  a machine that slows down affects all of them.
  """
  sizes = evaluate.batch_sizes(batch_size)
  early = evaluate.EarlyExit(model, variables, sizes=sizes)
  early.compile(pixels.shape[1:])
  whole = jax.jit(last_exit(model))
  variables = jax.device_put(variables)

  def at_once() -> None:
    for start in range(0, len(pixels), batch_size):
      part = pixels[start : start + batch_size]
      np.asarray(whole(variables, part))

  def leaving(chosen: Sequence[float]) -> Callable[[], Any]:
    return lambda: early(pixels, chosen)

  everyone: list[Callable[[], Any]] = [at_once, *(leaving(chosen) for chosen in thresholds)]
  taken: list[list[float]] = [[] for _ in everyone]
  for turn in range(1 + rounds):
    for seconds, run in zip(taken, everyone, strict=True):
      started = time.perf_counter()
      run()
      if turn:  # the first turn warms up
        seconds.append(time.perf_counter() - started)
  full, *others = (1e6 * statistics.median(seconds) / len(pixels) for seconds in taken)
  return full, others


def last_exit(model: Any) -> Callable[[Any, Array], Array]:
  """Return (variables, images) -> the last exit's logits, without the other classifiers."""
  return lambda variables, images: model.apply(variables, images, False)[-1].logits


def tables(results: Mapping[str, Any]) -> str:
  """Return both tables in Markdown."""
  return "\n\n".join(
    [
      report.anytime_table(results["anytime"]),
      report.budget_table(results["budgeted"], results["full"]),
      f"Times: of {results['timed_images']} test images, {results['device']}, compiled before.",
    ]
  )


def run(arguments: list[str]) -> int:
  """Run the command with these flags; return its exit status."""
  return commands.run_main(sys.modules[__name__], main, arguments)
