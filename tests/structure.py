"""Figures of the source tree: files, lines and code lines by package, and parameters of functions.

python -m tests.structure [ROOT]
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def sources(root: Path) -> list[Path]:
  """The Python files of the library."""
  return sorted((root / "jaxkd").rglob("*.py"))


def code_lines(path: Path) -> int:
  """Lines with code: no comments, docstrings or blank lines."""
  text = path.read_text()
  lines = set()
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type not in _NO_CODE and token.type != tokenize.ENDMARKER:
      lines.update(range(token.start[0], token.end[0] + 1))
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      lines -= set(range(node.lineno, node.end_lineno + 1))
  return len(lines)


def parameters(path: Path) -> Iterator[tuple[str, int]]:
  """(function, number of its parameters) of every function and method, without self and cls."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef):
      arguments = node.args
      names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
      yield node.name, len([name for name in names if name not in ("self", "cls")])


def table(root: Path) -> str:
  """A Markdown table of the packages of a tree."""
  packages: dict[str, list[Path]] = {}
  for path in sources(root):
    parts = path.relative_to(root / "jaxkd").parts
    packages.setdefault(parts[0] if len(parts) > 1 else "(top level)", []).append(path)
  packages["all"] = sources(root)
  rows = ["| package | files | lines | code lines |", "|---|---|---|---|"]
  for name, paths in packages.items():
    lines = sum(len(path.read_text().splitlines()) for path in paths)
    rows.append(f"| {name} | {len(paths)} | {lines} | {sum(map(code_lines, paths))} |")
  most = max(
    (count, f"{path.relative_to(root)}:{name}")
    for path in packages["all"]
    for name, count in parameters(path)
  )
  return "\n".join([*rows, f"Most parameters: {most[0]}, {most[1]}"])


if __name__ == "__main__":
  print(table(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
