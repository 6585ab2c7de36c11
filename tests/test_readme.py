"""What the README shows works as shown."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["a-loss", "a-method"])
def test_snippets_run(snippet, capsys):
  names = {}
  exec(compile(snippet, "README.md", "exec"), names)
  if "terms" in names:
    assert float(capsys.readouterr().out) > 0
  else:
    assert float(names["metrics"]["cosine_feature"][0]) > 0


def test_snippets_are_as_short_as_promised():
  a_loss, a_method = (len([x for x in s.splitlines() if x.strip()]) for s in SNIPPETS)
  assert a_loss <= 6
  assert a_method <= 20


def test_every_path_named_exists():
  for path in re.findall(r"`((?:jaxkd|configs|experiments|tests)/[\w./]*)`", TEXT):
    assert (ROOT / path).exists(), path


def test_every_make_target_named_exists():
  targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
  for target in re.findall(r"(?:`|^)make ([a-z-]+)\b", TEXT, flags=re.MULTILINE):
    assert target in targets, target


@pytest.mark.parametrize(
  "name",
  [
    "budget",
    "claims_overview",
    "cross_mobilenetv2",
    "cross_mobilenetv2_search",
    "cross_vit",
    "cross_vit_search",
    "digits",
  ],
)
def test_tables_are_those_that_were_written(name):
  written = (ROOT / f"experiments/results/{name}.md").read_text().splitlines()
  rows = [line for line in written if line.startswith("|")]
  assert len(rows) >= 4
  for row in rows:
    assert row in TEXT


@pytest.mark.parametrize(
  ("row", "section"),
  [
    ("step over hand-written JAX, one device", "step_over_handwritten"),
    ("step over hand-written PyTorch", "step_over_pytorch"),
    ("run of 20 epochs with cached targets over PyTorch's without", "run_over_pytorch"),
    ("step of 4 peers, or of 4 branches, over its parts", "cohort_over_parts"),
    ("FLOPs over teacher + 3 students", "flops_over_minimum"),
  ],
)
def test_ratios_are_those_that_were_measured(row, section):
  measured = json.loads((ROOT / "experiments/studies/bench/results/bench.json").read_text())[
    section
  ]
  assert f"| {row} | {measured:.2f} |" in TEXT


def test_the_step_with_cached_targets_is_as_measured():
  details = json.loads((ROOT / "experiments/studies/bench/results/bench.json").read_text())[
    "details"
  ]
  worst = max(row["cached"] for row in details["step_over_pytorch"]["rows"].values())
  assert f"| step with cached targets over hand-written PyTorch | {worst:.2f} |" in TEXT
