"""`curves.png`: loss and accuracy of every stage over its epochs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from jaxkd.errors import writing
from jaxkd.train.reporting import Row


def draw_curves(
  path: pathlib.Path, rows: list[Row], stages: Mapping[str, Mapping[str, Any]], title: str
) -> None:
  """Draws training loss and validation accuracy; dashed lines are test accuracies.

  Args:
    path: the PNG to write.
    rows: of all stages.
    stages: stage name -> {"accuracy": test accuracy, "predictor": its reported predictor, "" for
      none}.
    title: above both panels.
  """
  figure = Figure(figsize=(10, 4), layout="constrained")
  losses, accuracies = figure.subplots(1, 2)
  for number, (stage, result) in enumerate(stages.items()):
    color = f"C{number}"
    own = [row for row in rows if row["stage"] == stage]
    losses.plot([r["epoch"] for r in own], [r["train"]["loss"] for r in own], color, label=stage)
    if not result["predictor"]:
      continue
    scored = [r for r in own if "validation" in r]
    accuracies.plot(
      [r["epoch"] for r in scored],
      [100 * r["validation"][result["predictor"]]["accuracy"] for r in scored],
      color,
      label=f"{stage}: {result['accuracy']:.1%} on test",
    )
    accuracies.axhline(100 * result["accuracy"], color=color, linestyle="--", linewidth=0.8)
  losses.set(xlabel="epoch", ylabel="training loss", yscale="log")
  accuracies.set(xlabel="epoch", ylabel="validation accuracy, %")
  accuracies.legend(loc="lower right")
  losses.legend(loc="upper right")
  figure.suptitle(title)
  with writing(path):
    figure.savefig(path, dpi=120)
