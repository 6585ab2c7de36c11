"""MLflow: one run for each phase, with the group as a tag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.errors import ConfigError, one_line
from jaxkd.report.trackers import Tracker


class MLflow(Tracker):
  """A reporter to MLflow, by its client, so that a run that is active stays as it is.

  MLFLOW_TRACKING_URI says where the runs go.

  Args:
    project: name of the experiment, created if absent.
    group: value of the tag "group" that the runs of all phases share; None for none.

  Raises:
    ConfigError: if MLflow does not take the place where the runs go.
  """

  def __init__(self, project: str = "jaxkd", group: str | None = None) -> None:
    super().__init__("mlflow")
    self._project, self._group = project, group
    self._run = ""
    self._client: Any
    try:
      self._client = self.package.MlflowClient()
      experiment = self._client.get_experiment_by_name(project)
    except Exception as error:  # MLflow raises errors of several libraries
      raise ConfigError(f"reporter mlflow: {one_line(error)}") from error
    self._experiment = experiment.experiment_id if experiment else None

  def begin(self, phase: str) -> None:
    """Begin a run."""
    if self._experiment is None:
      self._experiment = self._client.create_experiment(self._project)
    tags = {"group": self._group} if self._group else {}
    self._run = self._client.create_run(self._experiment, run_name=phase, tags=tags).info.run_id

  def log(self, values: Mapping[str, float], step: int) -> None:
    """Send values."""
    for name, value in values.items():
      self._client.log_metric(self._run, name, value, step=step)

  def end(self) -> None:
    """End the run."""
    self._client.set_terminated(self._run)
