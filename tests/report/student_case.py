"""A student's report with everything that one may have, without a network."""

from __future__ import annotations

import numpy as np

from jaxkd import evaluate
from jaxkd.report import StudentReport

N, C = 60, 6
NAMES = ["ant", "bee", "cat <script>", "dog|wolf", "eel", "fox"]


def made() -> StudentReport:
  """Return a report of two exits and their ensemble, of a teacher and of a baseline."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, C - 1, N)  # the last class is empty
  first, last, teacher, baseline = (
    rng.normal(size=(N, C)) + sharpness * np.eye(C)[labels] for sharpness in (1, 2, 4, 1)
  )
  exits = np.stack([first, last], axis=1)
  tree = evaluate.report(
    exits,
    labels,
    teacher,
    baseline_logits=baseline,
    validation=(exits[::-1], labels[::-1]),
    class_names=NAMES,
    resampling=evaluate.Resampling(100),
  )
  batch = {"batch": 1, "activation_bytes": 2048, "milliseconds": 0.5, "low": 0.4, "high": 0.6}
  everyone = [*tree["predictors"], "teacher", "baseline"]
  cost = {"parameters": 1234, "bytes": 4936, "multiply_adds": 9999, "device": "cpu", "note": ""}
  tree["data"], tree["main"], tree["bundles"] = "animals", "ensemble", {}
  tree["costs"] = {name: {**cost, "batches": [{**batch, "rounds": 9}]} for name in everyone}
  tree["costs"]["teacher"] |= {"batches": [], "multiply_adds": None}
  costs = [10, 30]
  tree["early_exit"] = {
    "anytime": evaluate.anytime_curve(exits, labels, costs),
    "budgets": [
      {"budget": 20.0, "multiply_adds": 19.0, "accuracy": 0.5, "thresholds": [-0.1, "-inf"]}
    ],
  }
  stages = ["stage1", "pooled"]
  values = [[0.9, None], [0.1, 0.8]]
  tree["cka"] = {"examples": 60, "student": stages, "teacher": stages, "values": values}
  tree["worst"] = {name: rows[:3] for name, rows in tree["worst"].items()}
  images = rng.integers(0, 256, (len(tree["worst"]["ensemble"]), 8, 8, 3), dtype=np.uint8)
  maps = {name: ("stage1", rng.random((len(images), 4, 4))) for name in ("student", "teacher")}
  return StudentReport(tree, images, maps)
