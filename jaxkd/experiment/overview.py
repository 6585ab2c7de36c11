"""What a config would train, told without training it."""

from __future__ import annotations

import jax

from jaxkd.errors import needed_by

with needed_by("jaxkd.experiment.overview"):
  import ml_collections
  from rich.console import Console


from jaxkd import models
from jaxkd.experiment import build, config
from jaxkd.train import Stage


def overview(settings: ml_collections.ConfigDict, console: Console) -> None:
  """Prints every stage of a config: its length, what is compared, and its network as a table.

  Nothing is compiled or written, but that a data set which was never used is prepared.

  Args:
    settings: from a file in `configs/`.
    console: where it goes.

  Raises:
    ConfigError: as `jaxkd.experiment.run.run` would.
  """
  config.check_config(settings)
  data = build.dataset(settings)
  shown: dict[str, str] = {}
  for stage in build.stages(settings, data):
    length = f"{stage.epochs} epochs of {stage.steps_per_epoch} steps, {len(stage.examples)} images"
    lines = [f"{stage.name}: {length}", *stage.notes]
    if stage.reported:
      table = _table(stage, data.image_shape)
      before = shown.setdefault(table, stage.name)
      network = f"{stage.reported}: {stage.label}"
      lines += [network, table] if before == stage.name else [f"{network}, as in stage {before!r}"]
    console.print("\n".join([*lines, ""]), soft_wrap=True, highlight=False, markup=False)


def _table(stage: Stage, image_shape: tuple[int, int, int]) -> str:
  """The network that stands for a stage, by the shapes of its variables."""
  batch = build.batch_shapes(image_shape, (2,))
  participants = jax.eval_shape(stage.scheme.init, jax.random.key(0), batch)
  network = stage.scheme.export(participants)[stage.reported]
  if network.preprocessing is not None:
    image_shape = network.preprocessing.image_shape
  return str(models.summary(network.module, image_shape, variables=network.variables))
