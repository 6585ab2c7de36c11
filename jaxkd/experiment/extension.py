"""More epochs of a finished run, exactly as if it had been planned with them (`--extend`)."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import report
from jaxkd.data import Dataset
from jaxkd.errors import ConfigError, writing
from jaxkd.experiment import build
from jaxkd.experiment.results import read_summary
from jaxkd.experiment.traced import traced_loss
from jaxkd.experiment.training_fields import recipe_arguments
from jaxkd.runtime import processes
from jaxkd.runtime.processes import workdir_lock
from jaxkd.train import Phase, learning_rate_schedule, steps_per_epoch

# What the end of the shorter run wrote, and the longer run writes again.
_KEPT = ("config.json", "summary.json", "curves.png", "bundles")


def begin_extension(
  settings: Any, workdir: pathlib.Path, load_data: Callable[..., Dataset]
) -> None:
  """Prepare the finished run in `workdir` to go on to the epochs of `settings`.

  Its config, summary, picture and bundles are copied to `workdir/before/epochs_N`; the checkpoints
  of its end are where the longer run goes on. A run that is already extended stays as it is.

  Args:
    settings: the config of the run, with a larger `student.epochs` (`teacher.epochs` for the method
      "teacher").
    workdir: work directory of the finished run.
    load_data: function that loads the data set.

  Raises:
    ConfigError: if the run is not finished, another field differs, the epochs are fewer, or the
      longer run would have differed from the beginning: by its schedule, a ramp of its method, or
      a phase that others inherit from.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise ConfigError(f"--extend: workdir {workdir} holds no run: expected a finished one")
  stored = _stored(path)
  role = "teacher" if settings.method.name == "teacher" else "student"
  before, after = _epochs(stored, role, path), settings[role].epochs
  if before == after:
    return  # its extension is interrupted or complete; another difference is refused
  if after < before:
    raise ConfigError(
      f"--extend: {role}.epochs={after}: expected more than {before}, the epochs of the run in "
      f"{workdir}"
    )
  # Imported here, for `run` imports this module.
  from jaxkd.experiment.run import refuse_other_run

  shorter = settings.copy_and_resolve_references()
  with shorter.unlocked():
    shorter[role].epochs = before
  refuse_other_run(shorter, workdir)
  if not (workdir / "summary.json").exists():
    raise ConfigError(
      f"--extend: the run in {workdir} is not finished: run it to its end with {role}.epochs="
      f"{before} first"
    )
  read_summary(workdir)
  data = build.as_seen(settings, build.dataset(settings, load_data))
  _check_same_start(shorter, settings, role, data)
  processes.barrier("extension checked")
  with workdir_lock(workdir):
    if processes.is_first_process():
      _keep(workdir, before)
      _begin(workdir, settings)
  processes.barrier("extension begun")


def _stored(path: pathlib.Path) -> dict[str, Any]:
  try:
    return dict(json.loads(path.read_text()))
  except (OSError, ValueError, TypeError) as error:
    raise ConfigError(f"{path} is damaged: {error}") from error


def _epochs(stored: dict[str, Any], role: str, path: pathlib.Path) -> int:
  try:
    return int(stored[role]["epochs"])
  except (KeyError, TypeError, ValueError) as error:
    raise ConfigError(f"{path} is damaged: no {role}.epochs") from error


def _check_same_start(shorter: Any, longer: Any, role: str, data: Dataset) -> None:
  """Raise a ConfigError if the longer run does not begin with the updates of the shorter one."""
  before, after = shorter[role].epochs, longer[role].epochs
  if before % longer.evaluate_every and (longer.keep == "best" or longer[role].get("patience", 0)):
    raise ConfigError(
      f"--extend: evaluate_every={longer.evaluate_every}: expected a divisor of {before}, the "
      "epochs of the run, as its last epoch was validated and counts for the best"
    )
  plans = [build.phases(settings, data, traced=False) for settings in (shorter, longer)]
  ends = [{phase.name: phase for phase in plan} for plan in plans]
  if list(ends[0]) != list(ends[1]):
    raise ConfigError(f"--extend: {role}.epochs={after} has other phases: {', '.join(ends[1])}")
  longer_phases = {n for n, phase in ends[1].items() if phase.epochs != ends[0][n].epochs}
  if not longer_phases:
    raise ConfigError(f"--extend: {role}.epochs={after}: no phase of this run would be longer")
  for name, phase in ends[1].items():
    for source in phase.inherit.values():
      origin = source.partition("/")[0]
      if origin in longer_phases:
        raise ConfigError(
          f"--extend: phase {name!r} inherits from {origin!r}, which would be longer, and is "
          "already trained: expected a new --workdir"
        )
  for name in sorted(longer_phases):
    steps = steps_per_epoch(len(ends[1][name].examples), longer.batch_size)
    rates = [
      np.asarray(jax.jit(jax.vmap(_schedule(settings, role, steps)))(jnp.arange(before * steps)))
      for settings in (shorter, longer)
    ]
    differs = np.flatnonzero(rates[0] != rates[1])
    if len(differs):
      raise ConfigError(
        f"--extend: {role}.schedule={longer[role].schedule!r} depends on the number of epochs: of "
        f"{after}, the learning rate would be {rates[1][differs[0]]:.6g} and not "
        f"{rates[0][differs[0]]:.6g} at update {differs[0]}: expected 'constant', 'step', or a new "
        "--workdir"
      )
    _check_objective(name, (ends[0][name], ends[1][name]), data)


def _schedule(settings: Any, role: str, steps: int) -> Any:
  """Return the schedule of a section, as `build` makes it."""
  recipe = settings[role]
  return learning_rate_schedule(
    recipe.schedule,
    learning_rate=recipe.learning_rate,
    epochs=recipe.epochs,
    steps_per_epoch=steps,
    drops=recipe.drops,
    drop_factor=recipe.drop_factor,
    warmup_epochs=recipe.warmup_epochs,
    arguments=recipe_arguments(role, recipe)[1],
  )


def _check_objective(name: str, phases: tuple[Phase, Phase], data: Dataset) -> None:
  """Raise a ConfigError if the loss of a phase depends on its number of epochs."""
  programs = [_objective(phase, data) for phase in phases]
  if programs[0] != programs[1]:
    raise ConfigError(
      f"--extend: the loss of phase {name!r} depends on the number of epochs, as a weight that "
      "changes over all of them does: expected a new --workdir"
    )


def _objective(phase: Phase, data: Dataset) -> tuple[str, list[bytes]]:
  """Return the traced loss of a phase as text, and the constants in it."""
  traced = traced_loss(phase, data.input_shape)
  consts = [
    np.asarray(x).tobytes()
    for x in traced.consts
    if not jax.dtypes.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key)
  ]
  return re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr)), consts


def _keep(workdir: pathlib.Path, epochs: int) -> None:
  """Copy what the longer run writes again to `before/epochs_N`, all or nothing."""
  folder = workdir / "before" / f"epochs_{epochs}"
  if folder.exists():
    return
  partial = folder.with_suffix(".partial")
  with writing(folder):
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _KEPT:
      source = workdir / name
      if source.is_dir():
        shutil.copytree(source, partial / name)
      elif source.exists():
        shutil.copy2(source, partial / name)
    partial.rename(folder)


def _begin(workdir: pathlib.Path, settings: Any) -> None:
  """Mark the run as an unfinished one with more epochs."""
  summary = workdir / "summary.json"
  with writing(summary):
    summary.unlink()
  # A process that ends here leaves the finished run without its summary, which the command without
  # --extend writes again.
  text = json.dumps(settings.to_dict(), indent=2, sort_keys=True)
  report.write_atomically(workdir / "config.json", text + "\n")
