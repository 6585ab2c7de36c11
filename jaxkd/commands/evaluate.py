"""Score trained networks on a data set: accuracy, cross-entropy and calibration error.

    jaxkd evaluate --bundle runs/digits-simkd

--bundle is one predictor's bundle, or a run's directory, whose predictors are all scored. The data
set is the one that the bundle names, or --data. Images are converted to the mean, std and size that
the network was trained on. The calibration error is the expected one of 15 bins of confidence.

    jaxkd evaluate --bundle runs/digits-simkd --report report/

also writes the report of a student: report.json, report.md and report.html, one page with pictures.
--teacher and --baseline are bundles that it is compared with; a run's directory has them. The
temperature and the thresholds of early exit are fitted to the validation split of the run.
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
  from jaxkd.experiment.student_report import Sources, student_report
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

_TEACHER = flags.DEFINE_string(
  "teacher", None, "Bundle of the teacher, to report the student beside it.", flag_values=FLAGS
)
_BASELINE = flags.DEFINE_string(
  "baseline", None, "Bundle of the student trained alone, likewise.", flag_values=FLAGS
)
_REPORT = flags.DEFINE_string(
  "report", None, "Also write the report of the student to this directory.", flag_values=FLAGS
)

# Name of a predictor -> metric -> value.
Scores = Mapping[str, Mapping[str, float]]


def main(argv: list[str]) -> None:
  """Score the bundles that the flags name, print a table and write the scores."""
  if len(argv) > 1:
    raise ConfigError(f"unexpected argument {argv[1]!r}: every setting is a --flag")
  logging.set_verbosity(logging.WARNING)
  directory = pathlib.Path(_REPORT.value) if _REPORT.value else None
  if directory is not None and directory.exists() and not directory.is_dir():
    raise ConfigError(f"report={_REPORT.value!r} is a file, expected a directory")
  found = scored(
    pathlib.Path(_BUNDLE.value), _DATA.value, _DIRECTORY.value, _BATCH.value, allow=_ALLOW.value
  )
  lines = [table(found)]
  if _TEACHER.value or _BASELINE.value or directory is not None:
    made = student_report(_sources(), _BATCH.value)
    lines += ["", report.student_tables(made)]
    if directory is not None:
      lines += ["", f"report: {report.write_student_report(directory, made)}"]
  Console().print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
  if _OUTPUT.value:
    report.write_atomically(pathlib.Path(_OUTPUT.value), json.dumps(found, indent=2) + "\n")


def _sources() -> Sources:
  """Return the bundles of a report that the flags name."""
  teacher, baseline = (
    pathlib.Path(flag.value) if flag.value else None for flag in (_TEACHER, _BASELINE)
  )
  return Sources(
    pathlib.Path(_BUNDLE.value), teacher, baseline, _DATA.value, _DIRECTORY.value, _ALLOW.value
  )


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
