"""The file of all benchmarks: a number for each section, and its rows."""

from __future__ import annotations

from typing import Any


def merged(results: dict[str, Any], name: str, part: dict[str, Any]) -> dict[str, Any]:
  """Return the results with one section replaced."""
  found = part["found"]
  details = dict(results.get("details", {}))
  details[name] = {key: part[key] for key in ("seconds", "versions", "machine")}
  if name == "losses":
    number = found["losses"]
    details[name] |= {key: value for key, value in found.items() if key != "losses"}
  else:
    number = headline(name, found)
    details[name]["rows"] = found
  rest = {key: value for key, value in results.items() if key != "details"}
  return {**rest, name: number, "details": details} | {k: part[k] for k in ("versions", "machine")}


def headline(name: str, rows: dict[str, Any]) -> float:
  """Return one number for a section: of whole runs the cached one, else the worst row's."""
  if name == "run_over_pytorch" and "cached" in rows:
    return rows["cached"]["ratio"]
  return max(row["ratio"] for row in rows.values())
