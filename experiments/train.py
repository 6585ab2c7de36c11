"""Trains a config's teacher and students, or resumes where the same command stopped.

    python experiments/train.py --config configs/digits.py:simkd --workdir runs/digits-simkd

Any field can be set on the command line: --config.student.learning_rate=0.1
"""

import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from jaxkd import experiment, recipes
from jaxkd.errors import ConfigError
from jaxkd.train import devices

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as FILE.py:METHOD.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and results of the run go.")
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Run as one of several processes; see the README on several hosts."
)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
  """Runs the experiment that the flags name."""
  if len(argv) > 1:
    raise ConfigError(f"unexpected argument {argv[1]!r}: every setting is a --flag")
  recipes.check_config(_CONFIG.value)
  logging.set_verbosity(logging.WARNING)  # orbax tells every step of every save
  devices.split_cpu(_CONFIG.value.cpu_devices, _CONFIG.value.batch_size)
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  experiment.run(_CONFIG.value, pathlib.Path(_WORKDIR.value), Console())


def guarded_main() -> None:
  """Reports a user's mistake as one line and a non-zero status, without a traceback."""
  try:
    app.run(main)
  except ConfigError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  guarded_main()
