"""Training of several phases in order, in which later ones inherit networks of earlier ones."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from jaxkd.runtime.devices import local_devices
from jaxkd.train.early_stopping import check_patience
from jaxkd.train.fed_tables import FedTables
from jaxkd.train.loop import Finished, TrainOptions, train_phase
from jaxkd.train.phase import Phase, check_phases, starting_variables
from jaxkd.train.reporting import Reporter, Silent


def train_phases(
  phases: Sequence[Phase],
  directory: str | os.PathLike[str],
  *,
  validation: Any = None,
  test: Any = None,
  devices: Sequence[jax.Device] | None = None,
  reporter: Reporter | None = None,
  options: TrainOptions | None = None,
) -> dict[str, Finished]:
  """Train phases in order; each resumes from its newest checkpoint in a folder of `directory`.

  `jaxkd.experiment.run` does the same for a config, and writes results and bundles.

  Args:
    phases: the phases; `Phase.inherit` names participants of earlier ones.
    directory: each phase has its checkpoints in the folder of its name.
    validation: as for `train_phase`, as are `test`, `reporter` and `options`.
    test: examples that the final networks are scored on.
    devices: devices that share each batch; None takes all, of the CPU one.
    reporter: None reports nothing.
    options: None for the defaults.

  Returns:
    Phase -> its result.

  Raises:
    ConfigError: if phases do not fit together, or the batch cannot be divided over the devices; as
      `train_phase`.
  """
  check_phases(list(phases))
  count = 1 if jax.local_devices()[0].platform == "cpu" else 0
  shared: dict[str, Sequence[jax.Device]] = {}
  for phase in phases:  # before the first one is trained
    shared[phase.name] = devices or local_devices(count, phase.batch_size, phase.accumulate)
    if phase.epochs:
      check_patience(phase, validation)
    FedTables(phase)
  results: dict[str, Finished] = {}
  for phase in phases:
    given = starting_variables(phase, {name: one.participants for name, one in results.items()})
    results[phase.name] = train_phase(
      dataclasses.replace(phase, given=given),
      directory=pathlib.Path(directory).absolute() / phase.name,
      devices=shared[phase.name],
      reporter=reporter or Silent(),
      validation=validation,
      test=test,
      options=options,
    )
  return results
