"""Overview of a config: its phases and networks, printed without training."""

from __future__ import annotations

import jax

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.overview"):
  import ml_collections
  from rich.console import Console


from jaxkd import models
from jaxkd.experiment import build, config
from jaxkd.experiment.traced import batch_shapes
from jaxkd.shapes import InputShape
from jaxkd.train import Phase


def overview(settings: ml_collections.ConfigDict, console: Console) -> None:
  """Print every phase of a config: its length, the compared stages, and its network as a table.

  Nothing is compiled. Nothing is written, except that a data set that was never used is prepared.

  Args:
    settings: from a file in `configs/`.
    console: receives the overview.

  Raises:
    ConfigError: as `jaxkd.experiment.run.run` would.
  """
  config.check_config(settings)
  data = build.dataset(settings)
  shown: dict[str, str] = {}
  for phase in build.phases(settings, data):
    count = f"{len(phase.examples)} {'examples' if data.image_shape is None else 'images'}"
    length = f"{phase.epochs} epochs of {phase.steps_per_epoch} steps, {count}"
    lines = [f"{phase.name}: {length}", *phase.notes]
    if phase.reported:
      table = _table(phase, data.input_shape)
      before = shown.setdefault(table, phase.name)
      network = f"{phase.reported}: {phase.label}"
      lines += [network, table] if before == phase.name else [f"{network}, as in phase {before!r}"]
    console.print("\n".join([*lines, ""]), soft_wrap=True, highlight=False, markup=False)


def _table(phase: Phase, shape: InputShape) -> str:
  """Return the table of a phase's reported network, from the shapes of its variables."""
  batch = batch_shapes(shape, (2,))
  participants = jax.eval_shape(phase.scheme.init, jax.random.key(0), batch)
  network = phase.scheme.export(participants)[phase.reported]
  if network.preprocessing is not None:
    shape = network.preprocessing.image_shape
  return str(models.summary(network.module, shape, variables=network.variables))
