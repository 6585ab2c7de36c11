"""Progress and tables on the console."""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from jaxkd.evaluate.multi_label import MEAN_AVERAGE_PRECISION as MEAN_PRECISION
from jaxkd.train.reporting import Row, Silent

# Without a terminal: about this many lines per stage, and at least one per this many seconds.
_LINES_PER_STAGE = 5
_SECONDS_PER_LINE = 60.0
# Time over which the speed is averaged.
_SPEED_SECONDS = 10.0


class ProgressBar(Silent):
  """A progress bar per stage, with losses by term, accuracy, images/s and the time left."""

  def __init__(self, console: Console) -> None:
    self._console = console
    self._progress: Progress | None = None
    self._speed = _Speed()
    self._validation = ""

  def phase_started(self, stage: str, steps: int, rows: list[Row]) -> None:
    """Show a bar that starts at 0, or at the checkpoint that the stage resumes from."""
    self._progress = Progress(
      TextColumn("[bold]{task.description}"),
      BarColumn(bar_width=20),
      MofNCompleteColumn(),
      TimeRemainingColumn(),
      # On a narrow terminal this column alone is truncated.
      TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True)),
      console=self._console,
      expand=True,
    )
    self._progress.start()
    done = self.updates_behind(rows)
    self._task = self._progress.add_task(stage, total=steps, completed=done, figures="compiling")
    self._speed, self._validation = _Speed(), _validation(rows[-1]) if rows else ""

  def message(self, line: str) -> None:
    """Print the line."""
    self._console.print(line, highlight=False, soft_wrap=True)

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """Advance the bar."""
    assert self._progress is not None
    figures = _figures(metrics, self._speed.after(images), self._validation)
    self._progress.update(self._task, advance=1, figures=figures)

  def epoch_ended(self, row: Row) -> None:
    """Keep the validation accuracy of the epoch for display."""
    self._validation = _validation(row) or self._validation

  def rolled_back(self, stage: str, rows: list[Row]) -> None:
    """Move the bar back to the restored checkpoint."""
    assert self._progress is not None
    self._progress.update(self._task, completed=self.updates_behind(rows))
    self._validation = _validation(rows[-1]) if rows else ""

  def phase_ended(self, stage: str) -> None:
    """Stop updating the bar, which stays on the screen."""
    assert self._progress is not None
    self._progress.stop()


class Lines(Silent):
  """A few lines per stage, for logs."""

  def __init__(self, console: Console) -> None:
    self._console = console
    self._speed = _Speed()
    self._steps = 0
    self._printed_share, self._printed_at = 0, 0.0

  def phase_started(self, stage: str, steps: int, rows: list[Row]) -> None:
    """Print the name of the stage, its steps and where it resumes."""
    done = self.updates_behind(rows)
    resumed = f", resumed after {done}" if done else ""
    self._console.print(
      f"{stage}: {steps} steps{resumed}" if steps else f"{stage}: comes trained", highlight=False
    )
    self._steps, self._speed = steps, _Speed()
    self._continue_after(done)

  def rolled_back(self, stage: str, rows: list[Row]) -> None:
    """Print the repeated epochs again."""
    self._continue_after(self.updates_behind(rows))

  def _continue_after(self, done: int) -> None:
    self._printed_share = _LINES_PER_STAGE * done // self._steps if self._steps else 0
    self._printed_at = time.monotonic()

  def message(self, line: str) -> None:
    """Print the line."""
    self._console.print(line, highlight=False, soft_wrap=True)

  def stepped(self, metrics: Mapping[str, float], images: int) -> None:
    """Count images for the speed."""
    self._images_per_second = self._speed.after(images)

  def epoch_ended(self, row: Row) -> None:
    """Print the epoch if a line is due."""
    share = _LINES_PER_STAGE * row["step"] // self._steps
    now = time.monotonic()
    if share == self._printed_share and now - self._printed_at < _SECONDS_PER_LINE:
      return
    self._printed_share, self._printed_at = share, now
    self._console.print(
      f"{row['stage']}: epoch {row['epoch']}, step {row['step']}/{self._steps}, "
      f"{_figures(row['train'], self._images_per_second, _validation(row))}",
      highlight=False,
      soft_wrap=True,
    )


class _Speed:
  """Images per second over the last seconds, without compilation.

  Results arrive in bursts, since the loop reads them late, so the speed needs the time of several.
  """

  def __init__(self) -> None:
    self._seen: collections.deque[tuple[float, int]] = collections.deque()

  def after(self, images: int) -> float:
    now = time.monotonic()
    total = self._seen[-1][1] + images if self._seen else images
    self._seen.append((now, total))
    while now - self._seen[0][0] > _SPEED_SECONDS:
      self._seen.popleft()
    first_time, first_total = self._seen[0]
    # The time within a single burst is near 0 and would give a far too high speed.
    return (total - first_total) / (now - first_time) if now - first_time > 0.2 else 0.0


def _figures(metrics: Mapping[str, float], images_per_second: float, validation: str) -> str:
  """Format the metrics of a step, the most informative first: a narrow terminal cuts the end."""
  accuracy = f", accuracy {metrics['accuracy']:.1%}" if "accuracy" in metrics else ""
  rate = f", {images_per_second:.0f} images/s" if images_per_second else ""
  terms = [
    f"{name} {value:.3g}"
    for kind in ("_feature", "_logit")
    for name, value in metrics.items()
    if name.endswith(kind)
  ]
  return f"loss {metrics['loss']:.4g}{accuracy}{validation}{rate}; {', '.join(terms)}"


def _validation(row: Row) -> str:
  scores = row.get("validation", {})
  return "".join(f", {name} validation {_shown(s)}" for name, s in scores.items())


def _shown(scores: Mapping[str, float]) -> str:
  return (
    f"mAP {scores[MEAN_PRECISION]:.1%}" if MEAN_PRECISION in scores else f"{scores['accuracy']:.1%}"
  )


def phases_by_role(phases: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
  """Return the phase of each role: the first teacher, the baseline and the last student.

  Args:
    phases: as for `comparison`.

  >>> phases_by_role({"teacher": {"role": "teacher"}, "kd": {"role": "student"}})
  {'teacher': 'teacher', 'student': 'kd'}
  """
  by_role: dict[str, str] = {}
  *_, last = phases
  for name, row in phases.items():
    old_role = {last: "student", "teacher": "teacher", "alone": "baseline"}.get(name, "")
    role = row.get("role", old_role)
    if role == "student" or role not in by_role:
      by_role[role] = name
  return by_role


def comparison(phases: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """The gain of distillation in test accuracy, or in mean average precision where rows have it.

  Args:
    phases: phase -> {"role": ..., "accuracy": ...}, in order. The first teacher, the baseline and
      the last student are compared. In summaries of earlier versions, which have no roles, the
      phases called teacher and alone are the first two, and the last one trained the student.

  Returns:
    "difference": student minus baseline; "gap_closed": that, as a share of teacher minus baseline
    (left out if no teacher is scored, or its accuracy is not above the baseline). Empty without
    both students.

  >>> rows = {"teacher": {"role": "teacher", "accuracy": 0.9},
  ...         "alone": {"role": "baseline", "accuracy": 0.5},
  ...         "distilled": {"role": "student", "accuracy": 0.7}}
  >>> {name: round(value, 3) for name, value in comparison(rows).items()}
  {'difference': 0.2, 'gap_closed': 0.5}
  >>> without_roles = {name: {"accuracy": row["accuracy"]} for name, row in rows.items()}
  >>> comparison(without_roles) == comparison(rows)
  True
  """
  by_role = {role: phases[name] for role, name in phases_by_role(phases).items()}
  if "baseline" not in by_role or "student" not in by_role:
    return {}
  both = by_role["baseline"], by_role["student"]
  score = MEAN_PRECISION if all(MEAN_PRECISION in row for row in both) else "accuracy"
  baseline, student = (row[score] for row in both)
  figures = {"difference": student - baseline}
  gap = by_role.get("teacher", {}).get(score, baseline) - baseline
  if gap > 0:
    figures["gap_closed"] = (student - baseline) / gap
  return figures


def closing_table(summary: Mapping[str, Any]) -> Table:
  """Return the table printed at the end of a run, from its summary."""
  method, data, seed = (summary["config"][k] for k in ("method", "data", "seed"))
  rows = [row for row in summary["stages"].values() if row["predictor"]]
  precise = bool(rows) and all(MEAN_PRECISION in row for row in rows)
  score, heading = (MEAN_PRECISION, "mAP") if precise else ("accuracy", "accuracy")
  table = Table(title=f"{method['name']} on {data['name']}, seed {seed}: test {heading}")
  for name, justify in (("network", "left"), ("model", "left"), ("parameters", "right")):
    table.add_column(name, justify=justify)  # type: ignore[arg-type]
  table.add_column(heading, justify="right")
  for name, row in summary["stages"].items():
    label = {"alone": "student alone", "distilled": f"student, {method['name']}"}.get(name, name)
    if row["predictor"]:
      table.add_row(label, row["model"], f"{row['parameters']:,}", f"{row[score]:.2%}")
    else:
      # A stage without a predictor has no accuracy; its last training loss is shown.
      reached = f"loss {row['train']['loss']:.4g}" if "train" in row else "not scored"
      table.add_row(label, row["model"], "", reached)
  gain = summary["comparison"]
  if gain:
    table.add_section()
    table.add_row("distilled - alone", "", "", f"{100 * gain['difference']:+.2f} points")
    closed = f"{gain['gap_closed']:.0%}" if "gap_closed" in gain else "no gap"
    if summary["stages"].get("teacher", {}).get("predictor"):
      table.add_row("share of gap closed", "", "", closed)
  return table
