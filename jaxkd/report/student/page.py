"""Writers of a student's report: JSON, Markdown, and one HTML page without other files."""

from __future__ import annotations

import base64
import html
import json
import pathlib
from collections.abc import Mapping, Sequence

from jaxkd.report.files import write_atomically
from jaxkd.report.student.figures import figures
from jaxkd.report.student.sections import Section, StudentReport, sections

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"

# Sections that a terminal shows.
_MAIN = ("Scores", "Differences", "Fidelity to the teacher", "Calibration", "Costs", "Early exit")

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left; white-space: nowrap; }
th { background: #f2f2f2; white-space: normal; }
img { max-width: 100%; margin: 1em 0; }
"""


def write_student_report(
  directory: pathlib.Path, found: StudentReport, title: str = ""
) -> pathlib.Path:
  """Write report.json, report.md and report.html; return the path of the page.

  The page holds its style and its pictures, and refers to nothing else.

  Args:
    directory: where they go; made if absent. Files of these names are replaced.
    found: the report.
    title: heading of the page; empty for the name of the data set.

  Raises:
    DiskError: if it cannot be written.
  """
  title = title or f"Report of a student on {found.tree['data']}"
  parts = sections(found.tree)
  pictures = figures(found)
  notes = list(found.tree["notes"])
  text = json.dumps(found.tree, indent=2, allow_nan=False) + "\n"
  write_atomically(directory / JSON, text)
  write_atomically(directory / MARKDOWN, markdown(title, parts, notes))
  write_atomically(directory / HTML, _html(title, parts, notes, pictures))
  return directory / HTML


def student_tables(found: StudentReport) -> str:
  """Return the remarks and the main tables of a report as Markdown, for a terminal."""
  parts = [part for part in sections(found.tree) if part.title in _MAIN]
  return markdown("", parts, found.tree["notes"]).strip()


def markdown(title: str, parts: Sequence[Section], notes: Sequence[str]) -> str:
  """Return a report as Markdown; its pictures are in the page alone."""
  lines = [f"# {title}", ""] if title else []
  lines += [f"- {note}" for note in notes]
  for part in parts:
    if not part.rows:
      continue
    lines += ["", f"## {part.title}", "", part.text, ""]
    rows = [part.head, ["---"] * len(part.head), *part.rows]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
  return "\n".join(lines) + "\n"


def _html(
  title: str,
  parts: Sequence[Section],
  notes: Sequence[str],
  pictures: Mapping[str, tuple[bytes, str]],
) -> str:
  body = [f"<h1>{html.escape(title)}</h1>"]
  if notes:
    body.append(f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>")
  for part in parts:
    picture = pictures.get(part.figure)
    if not part.rows and picture is None:
      continue
    body += [f"<h2>{html.escape(part.title)}</h2>", f"<p>{html.escape(part.text)}</p>"]
    if part.rows:
      body.append(html_table(part.head, part.rows))
    if picture is not None:
      png, description = picture
      source = base64.b64encode(png).decode("ascii")
      alt = html.escape(description)
      body.append(f'<img alt="{alt}" src="data:image/png;base64,{source}">')
  return html_page(title, body)


def html_page(title: str, body: Sequence[str]) -> str:
  """Return a page with its style."""
  return "\n".join(
    [
      "<!DOCTYPE html>",
      '<html lang="en">',
      f'<head><meta charset="utf-8"><title>{html.escape(title)}</title>',
      f"<style>\n{STYLE}</style></head>",
      "<body>",
      *body,
      "</body>",
      "</html>",
      "",
    ]
  )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, escaped: bool = True) -> str:
  """Return a table; `escaped=False` takes cells that are HTML already."""
  cell = html.escape if escaped else str
  lines = ["<table>", f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"]
  lines += [f"<tr>{''.join(f'<td>{cell(value)}</td>' for value in row)}</tr>" for row in rows]
  return "\n".join([*lines, "</table>"])
