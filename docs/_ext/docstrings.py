"""Docstrings as reStructuredText: code in backquotes, Markdown tables, formulas with * and |."""

from __future__ import annotations

import inspect
import io
import re
from typing import Any

# Messages about directives and roles of Sphinx, which docutils alone does not have.
_SPHINX_ONLY = re.compile(r"Unknown (directive|interpreted text role)|No (directive|role) entry")


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
  """Escape prose for reStructuredText, before napoleon reads the sections."""
  result: list[str] = []
  doctest = table = False
  for line in lines:
    stripped = line.strip()
    doctest = stripped.startswith(">>>") or (doctest and stripped != "")
    if stripped.startswith("|") and not doctest:
      if not table:
        result += ["::", ""]
      result.append(f"   {line}")
      table = True
      continue
    if table and stripped:
      result.append("")
    table = False
    result.append(line if doctest else _escaped(line))
  lines[:] = result


def _escaped(line: str) -> str:
  """A line with code as ``code`` and without other markup."""
  parts = line.split("`")
  if len(parts) % 2 == 0:  # a quotation that ends on another line
    return re.sub(r"([*|`])", r"\\\1", line)
  for i, part in enumerate(parts):
    parts[i] = f"``{part}``" if i % 2 else re.sub(r"([*|])|(?<=\w)_(?!\w)", r"\\\g<0>", part)
  # No character may follow the closing quotes directly but punctuation.
  return re.sub(r"(``[^`]+``)(?=\w)", r"\1\\ ", "".join(parts))


def check(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
  """Show a docstring literally if it is no valid reStructuredText."""
  import docutils.core
  import docutils.nodes

  settings = {"report_level": 2, "halt_level": 5, "warning_stream": io.StringIO()}
  document = docutils.core.publish_doctree("\n".join(lines), settings_overrides=settings)
  messages = [*document.findall(docutils.nodes.system_message), *document.transform_messages]
  if any(not _SPHINX_ONLY.search(message.astext()) for message in messages):
    text = inspect.getdoc(obj) or ""
    lines[:] = ["::", "", *(f"   {line}" for line in text.splitlines()), ""]


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
  """Leave out the fields of named tuples, which their class describes."""
  if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number"):
    return True
  return None
