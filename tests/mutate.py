"""Breaks the losses on purpose, one way at a time, and tells which test notices.

    python -m tests.mutate [--output FILE]

Each mutation is made in a copy of the working tree, on which the tests of the losses then run up
to the first that fails. A mutation that no test notices is a failure of the tests: the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
TESTS = {
  "properties": ["tests/losses"],
  "parity": ["tests/test_golden.py"],
}


class Mutation(NamedTuple):
  """One thing broken: `old` becomes `new` in a file of jaxkd/losses."""

  claim: str
  file: str
  old: str
  new: str


MUTATIONS = [
  Mutation("swap the direction of KL", "logits.py", "", ""),
]


def catch(mutation: Mutation, kind: str) -> str:
  """The first test that fails with the mutation made; "" if none does."""
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder)
    for part in ("jaxkd", "tests", "experiments", "configs"):
      shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
      shutil.copy(ROOT / part, copy / part)
    path = copy / "jaxkd" / "losses" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
      raise SystemExit(
        f"{mutation.claim}: {mutation.old!r} is {text.count(mutation.old)} times in "
        f"{mutation.file}, not once"
      )
    path.write_text(text.replace(mutation.old, mutation.new))
    # The copy comes first on the path, before the installed package.
    done = subprocess.run(
      [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *TESTS[kind]],
      cwd=copy,
      capture_output=True,
      text=True,
      check=False,
    )
    if done.returncode == 0:
      return ""
    failed = re.search(r"^(?:FAILED|ERROR) \S*::(\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
      raise SystemExit(f"{mutation.claim}: pytest could not run:\n{done.stdout[-2000:]}")
    return failed[1]


def main() -> None:
  """Tries every mutation and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", type=pathlib.Path, help="also write the table to this file")
  output = parser.parse_args().output
  tasks = [(mutation, kind) for mutation in MUTATIONS for kind in TESTS]
  with ThreadPoolExecutor(2) as pool:
    caught = list(pool.map(lambda task: catch(*task), tasks))
  lines = ["| mutation | caught by properties | caught by parity |", "|---|---|---|"]
  for i, mutation in enumerate(MUTATIONS):
    cells = [f"`{test}`" if test else "**no test**" for test in caught[2 * i : 2 * i + 2]]
    lines.append(f"| {mutation.claim} | {' | '.join(cells)} |")
  text = "\n".join(lines)
  print(text)
  if output:
    output.write_text(f"Written by `python -m tests.mutate`.\n\n{text}\n")
  missed = [
    mutation.claim for i, mutation in enumerate(MUTATIONS) if not any(caught[2 * i : 2 * i + 2])
  ]
  if missed:
    sys.exit(f"no test notices: {', '.join(missed)}")


if __name__ == "__main__":
  main()
