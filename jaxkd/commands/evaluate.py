"""Score trained networks on a data set: accuracy, cross-entropy and calibration error.

    jaxkd evaluate --bundle runs/digits-simkd

--bundle is one predictor's bundle, or a run's directory, whose predictors are all scored. The data
set is the one that the bundle names, or --data. Images are converted to the mean, std and size that
the network was trained on. The calibration error is the expected one of 15 bins of confidence.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

from jaxkd.errors import needed_by

with needed_by("jaxkd evaluate"):
  from absl import flags, logging
  from rich.console import Console

  from jaxkd import commands, data, report
  from jaxkd.errors import ConfigError
  from jaxkd.export import bundles, scores

FLAGS = flags.FlagValues()

_BUNDLE = flags.DEFINE_string(
  "bundle",
  None,
  "A predictor's bundle, or a run's work directory.",
  required=True,
  flag_values=FLAGS,
)
_DATA = flags.DEFINE_string(
  "data", None, "Data set; by default the one that the bundle names.", flag_values=FLAGS
)
_DIRECTORY = flags.DEFINE_string("directory", None, "Where TFDS keeps the data.", flag_values=FLAGS)
_BATCH = flags.DEFINE_integer(
  "batch_size", 256, "Examples of one step.", lower_bound=1, flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Also write the scores to this JSON file.", flag_values=FLAGS
)
_ALLOW = flags.DEFINE_list(
  "allow_import", [], "Packages whose code the bundle may import, such as mypkg.", flag_values=FLAGS
)

# Name of a predictor -> metric -> value.
Scores = Mapping[str, Mapping[str, float]]


def main(argv: list[str]) -> None:
  """Score the bundles that the flags name, print a table and write the scores."""
  if len(argv) > 1:
    raise ConfigError(f"unexpected argument {argv[1]!r}: every setting is a --flag")
  logging.set_verbosity(logging.WARNING)
  found = scored(
    pathlib.Path(_BUNDLE.value), _DATA.value, _DIRECTORY.value, _BATCH.value, allow=_ALLOW.value
  )
  Console().print(table(found), soft_wrap=True, highlight=False, markup=False)
  if _OUTPUT.value:
    report.write_atomically(pathlib.Path(_OUTPUT.value), json.dumps(found, indent=2) + "\n")


def scored(
  path: pathlib.Path,
  name: str | None,
  directory: str | None,
  batch_size: int,
  *,
  allow: Sequence[str] = (),
) -> Scores:
  """Return the scores of every predictor below `path` on the test split of its data set."""
  found, load = {}, functools.lru_cache(maxsize=1)(data.load)
  for predictor, bundle in scores.find_bundles(path).items():
    network, description = bundles.load_bundle(bundle, allow=allow)
    try:
      dataset = scores.data_of(description, name, directory=directory, load=load)
    except ConfigError as error:
      raise ConfigError(f"bundle {bundle}: {error}") from error
    try:
      crop = scores.crop_of(description, dataset)
    except ConfigError as error:
      raise ConfigError(f"bundle {bundle} {error}") from error
    try:
      result = scores.score_network(network, dataset, crop=crop, batch_size=batch_size)
    except ConfigError as error:
      raise ConfigError(f"bundle {bundle}: {error}") from error
    found[predictor or bundle.name] = result
  return found


def table(found: Scores) -> str:
  """Return the scores as a Markdown table."""
  lines = [
    "| network | test accuracy | cross-entropy, nats | calibration error |",
    "|---|---|---|---|",
  ]
  for name, row in found.items():
    accuracy, nats, error = (row[metric] for metric in scores.METRICS)
    lines.append(f"| {name} | {accuracy:.2%} | {nats:.4f} | {error:.4f} |")
  return "\n".join(lines)


def run(arguments: list[str]) -> int:
  """Run the command with these flags; return its exit status."""
  return commands.run_main(sys.modules[__name__], main, arguments)
