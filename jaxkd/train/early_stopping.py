"""The early end of a phase, when its validation score no longer rises (`Phase.patience`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd.errors import ConfigError
from jaxkd.train.evaluate import chosen_metric
from jaxkd.train.phase import Phase
from jaxkd.train.reporting import Row


def check_patience(phase: Phase, validation: Any) -> None:
  """Raise a ConfigError if a phase with patience has no validation accuracy to go by."""
  if phase.patience < 0:
    raise ConfigError(f"patience={phase.patience} of phase {phase.name!r}: expected >= 0")
  if phase.patience and (validation is None or not phase.reported):
    lacks = "validation examples" if phase.reported else "a predictor"
    raise ConfigError(
      f"patience={phase.patience} of phase {phase.name!r}: expected 0 without {lacks}"
    )


def stops_early(patience: int, rows: Sequence[Row], best_epoch: int | None) -> bool:
  """Check whether a phase ends after its last row; it depends on the rows of a checkpoint alone.

  Args:
    patience: epochs without a better score after which it ends; 0 never does.
    rows: one per epoch; it ends only after an epoch that is validated.
    best_epoch: the first epoch with the best score so far.

  >>> stops_early(2, [{"epoch": 5, "validation": {"student": {"accuracy": 0.5}}}], best_epoch=3)
  True
  """
  if not patience or not rows or best_epoch is None or not rows[-1].get("validation"):
    return False
  return rows[-1]["epoch"] - best_epoch >= patience


def stopping_line(phase: Phase, progress: Mapping[str, Any]) -> str:
  """Return a line that says after which epoch a phase has ended early."""
  last = progress["rows"][-1]
  metric = chosen_metric(last["validation"][phase.reported], phase.keep_by)
  best = progress["best_accuracy"]
  above = f"below {best:.4f}" if metric == "cross_entropy" else f"above {best:.1%}"
  return (
    f"{phase.name}: ended early after epoch {last['epoch']} of {phase.epochs}: no "
    f"validation {metric.replace('_', ' ')} {above}, of epoch "
    f"{progress['best_epoch']}, for {phase.patience} epochs"
  )
