"""Pages written at build time: one for each method of the registry, and the API reference.

`methods/` and `api/` below the source directory are generated and not under version control.
"""

from __future__ import annotations

import importlib
import pathlib
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import docstrings

import jaxkd

if TYPE_CHECKING:
  from sphinx.application import Sphinx

ROOT = pathlib.Path(__file__).parents[2]
# Methods whose losses are not exactly those of the module `jaxkd.losses.METHOD`.
LOSSES = {
  "wttm": ("transformed_teacher_matching", "transformed_teacher_kl"),
  "teacher": ("cross_entropy",),
  "alone": ("cross_entropy",),
  "netaug": ("cross_entropy",),
  "fitnets": ("fitnets", "hint_mse"),
  "simkd": ("simkd", "hint_mse"),
  "dml": ("mutual", "peer_kl"),
  "one": ("native_ensemble", "gated_logits"),
}
# Methods whose golden cases have another name than the method.
GOLDEN = {"fitnets": "fitnet"}


def registry() -> Mapping[str, tuple[str, Mapping[str, Any]]]:
  """Map each method to its summary and its config fields."""
  from jaxkd import methods

  return {
    name: (method.summary, methods.method_fields(name)) for name, method in methods.METHODS.items()
  }


def method_losses(name: str) -> Sequence[str]:
  """The public functions of `jaxkd.losses` that a method's objective consists of."""
  from jaxkd import losses

  if name in LOSSES:
    return LOSSES[name]
  module = f"jaxkd.losses.{name}"
  found = [f for f in losses.__all__ if getattr(losses, f).__module__ == module]
  # First those on outputs, then their kernels on arrays.
  return sorted(found, key=lambda f: "Terms" not in getattr(losses, f).__annotations__["return"])


def method_page(name: str, summary: str, fields: Mapping[str, Any], parity: str) -> str:
  """The Markdown page of a method."""
  lines = [f"# {name}", "", f"{summary[0].upper()}{summary[1:]}.", ""]
  if parity:
    lines += [f"Cases of the published code that agree, in value and gradient: {parity}.", ""]
  rows = [(field, *cells) for field, *cells in field_rows(fields) if field != "name"]
  if rows:
    lines += ["## Fields", "", "Set as `--config.method.FIELD=VALUE`.", ""]
    lines += ["| field | default | accepts |", "|---|---|---|"]
    lines += [f"| `{field}` | `{default}` | {accepts} |" for field, default, accepts in rows]
    lines += [""]
  lines += ["## Losses", ""]
  for loss in method_losses(name):
    directive = f".. autofunction:: jaxkd.losses.{loss}"
    lines += ["```{eval-rst}", directive, "   :no-index:", "```", ""]
  return "\n".join(lines)


def field_rows(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
  """(name, default, accepted values) of every field, those of sections by their path."""
  for name, field in fields.items():
    if isinstance(field, Mapping):
      yield from field_rows(field, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", repr(field.default), field.meaning.replace("|", "\\|")


def parity_figures() -> Mapping[str, str]:
  """Map the name of golden cases to "N of N in float64, N of N in float32"."""
  rows = re.findall(
    r"^\| (\w+) \| (\d+ of \d+) \| (\d+ of \d+) \|$",
    (ROOT / "tests/parity.md").read_text(),
    flags=re.MULTILINE,
  )
  return {name: f"{wide} in float64, {narrow} in float32" for name, wide, narrow in rows}


def api_pages() -> Mapping[str, str]:
  """Map the name of a page to its Markdown: one page for each public module of jaxkd."""
  pages = {}
  for info in pkgutil.iter_modules(jaxkd.__path__):
    if info.name.startswith("_"):
      continue
    name = f"jaxkd.{info.name}"
    module = importlib.import_module(name)
    if hasattr(module, "__all__") or not info.ispkg:
      parts = [name]
    else:
      parts = [f"{name}.{x.name}" for x in pkgutil.iter_modules(module.__path__)]
      parts = [part for part in parts if not part.rpartition(".")[2].startswith("_")]
    lines = [f"# {name}", ""]
    for part in parts:
      if part != name:
        lines += [f"## {part}", ""]
      lines += ["```{eval-rst}", f".. automodule:: {part}", "   :members:", "```", ""]
    pages[name] = "\n".join(lines)
  return pages


def write_pages(app: Sphinx) -> None:
  """Write every page whose content changed, and delete those that no longer exist."""
  parity = parity_figures()
  methods = registry()
  table = ["| method | summary |", "|---|---|"]
  table += [
    f"| [{name}](methods/{name}.md) | {summary} |" for name, (summary, _) in methods.items()
  ]
  pages = {"methods/_table.md": "\n".join(table)}
  for name, (summary, fields) in methods.items():
    figure = parity.get(GOLDEN.get(name, name), "")
    pages[f"methods/{name}.md"] = method_page(name, summary, fields, figure)
  modules = api_pages()
  for name, text in modules.items():
    pages[f"api/{name}.md"] = text
  toctree = "\n".join(["```{toctree}", ":maxdepth: 1", "", *modules, "```"])
  pages["api/index.md"] = f"# API reference\n\n{toctree}\n"
  for folder in ("methods", "api"):
    (pathlib.Path(app.srcdir) / folder).mkdir(exist_ok=True)
    for path in (pathlib.Path(app.srcdir) / folder).glob("*.md"):
      if f"{folder}/{path.name}" not in pages:
        path.unlink()
  for name, text in pages.items():
    path = pathlib.Path(app.srcdir) / name
    if not path.exists() or path.read_text() != text:
      path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
  """Register the extension."""
  app.connect("builder-inited", write_pages)
  app.connect("autodoc-process-docstring", docstrings.escape, priority=100)
  app.connect("autodoc-process-docstring", docstrings.check, priority=900)
  app.connect("autodoc-skip-member", docstrings.skip)
  return {"parallel_read_safe": True}
