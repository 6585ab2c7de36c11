"""trackio: one run for each phase, in one group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.report.trackers import Tracker


class Trackio(Tracker):
  """A reporter to trackio, by `trackio.init`, `log` and `finish`.

  Args:
    project: the project.
    group: name that the runs of all phases share; None for none.
    **options: further arguments of `trackio.init`.
  """

  def __init__(self, project: str = "jaxkd", group: str | None = None, **options: Any) -> None:
    super().__init__("trackio")
    self._options = {"project": project, "group": group, **options}

  def begin(self, phase: str) -> None:
    """Begin a run."""
    self.package.init(name=phase, **self._options)

  def log(self, values: Mapping[str, float], step: int) -> None:
    """Send values."""
    self.package.log(dict(values), step=step)

  def end(self) -> None:
    """End the run."""
    self.package.finish()
