"""Weights & Biases: one run for each phase, in one group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.report.trackers import Tracker


class WandB(Tracker):
  """A reporter to Weights & Biases, by `wandb.init` and `log`; WANDB_MODE=offline stays local.

  Args:
    project: the project.
    group: name that the runs of all phases share; None for none.
    **options: further arguments of `wandb.init`.
  """

  def __init__(self, project: str = "jaxkd", group: str | None = None, **options: Any) -> None:
    super().__init__("wandb")
    self._options = {"project": project, "group": group, "reinit": "create_new", **options}
    self._run: Any = None

  def begin(self, phase: str) -> None:
    """Begin a run."""
    self._run = self.package.init(name=phase, **self._options)

  def log(self, values: Mapping[str, float], step: int) -> None:
    """Send values."""
    self._run.log(dict(values), step=step)

  def end(self) -> None:
    """End the run."""
    self._run.finish()
