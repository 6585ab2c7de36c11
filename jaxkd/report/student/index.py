"""One page that links the reports of several runs."""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxkd.report.files import write_atomically
from jaxkd.report.student.page import html_page, html_table
from jaxkd.report.student.sections import shown


def write_index(
  path: pathlib.Path, runs: Mapping[str, tuple[pathlib.Path, Mapping[str, Any]]], title: str
) -> None:
  """Write an HTML page with a row for each run, linked to its own report.

  Args:
    path: the page.
    runs: name of a run -> (its report's page, its report's tree).
    title: heading of the page.

  Raises:
    DiskError: if it cannot be written.
  """
  rows = []
  for name, (page, tree) in runs.items():
    entry = tree["predictors"][tree["main"]]
    scores, fidelity = entry["scores"], entry["fidelity"] or {}
    link = html.escape(os.path.relpath(page, path.parent), quote=True)
    cells = [
      html.escape(tree["main"]),
      shown(scores["top1"], factor=100),
      shown(scores["nll"], ".4f"),
      shown(scores["ece_debiased"], ".4f"),
      shown(fidelity.get("agreement"), factor=100),
      shown(fidelity.get("agreement_where_wrong"), factor=100),
    ]
    rows.append([f'<a href="{link}">{html.escape(name)}</a>', *cells])
  head = ["run", "predictor", "top-1, %", "NLL, nats", "ECE, debiased", "agreement, %"]
  head.append("agreement where the teacher is wrong, %")
  body = [f"<h1>{html.escape(title)}</h1>", html_table(head, rows, escaped=False)]
  write_atomically(path, html_page(title, body))
