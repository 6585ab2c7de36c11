"""experiments/budget.py on a run with an untrained network."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, models
from jaxkd.commands import budget
from jaxkd.errors import ConfigError
from jaxkd.export.bundles import save_bundle

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The directory of a finished run: a ResNet with one exit on its first stage."""
  workdir = tmp_path_factory.mktemp("run")
  plain = models.create("resnet8_w4", num_classes=10)
  images = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)
  output, _ = jax.eval_shape(plain.init_with_output, jax.random.key(0), images)
  module = models.with_exits(plain, output, ["stage1"], num_classes=10)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  rng = np.random.default_rng(0)
  # Small values, so that probabilities differ; positive, so that variances are valid.
  variables = jax.tree.map(lambda x: rng.uniform(0, 0.3, x.shape).astype(x.dtype), shapes)
  network = models.exit_ensemble(module, variables)
  save_bundle(
    workdir / "bundles/distilled/ensemble", network, {"image_shape": list(SHAPE), "model": "any"}
  )
  save_bundle(
    workdir / "bundles/plain/ensemble",
    network._replace(module=network.module.network, variables=variables),
    {"image_shape": list(SHAPE)},
  )
  write_summary(workdir)
  return workdir


def write_summary(workdir, last="distilled", validation=0.2):
  section = {"name": "digits", "directory": "", "validation": validation}
  config = {"seed": 1, "method": {"name": "multi_exit"}, "data": section}
  summary = {"config": config, "stages": {"alone": {}, last: {}}}
  workdir.mkdir(exist_ok=True)
  (workdir / "summary.json").write_text(json.dumps(summary))


def examples(count, seed):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
  labels = rng.integers(0, 10, count).astype(np.int32)
  return data.ArrayExamples(pixels, labels, np.arange(count, dtype=np.int32))


def test_budget_script_writes_curves_budgets_and_times(run, tmp_path, monkeypatch, capsys):
  calls = []

  def load(name, **options):
    calls.append((name, options))
    train, validation, test = (examples(n, n) for n in (100, 30, 21))
    return data.Dataset(name, train, validation, test, 10, SHAPE, (0.3,), (0.4,))

  monkeypatch.setattr(data, "load", load)
  table = tmp_path / "table.md"
  settings = {"run": str(run), "budgets": "3", "rounds": "1", "images": "9", "batch": "2"}
  settings["allow_import"] = ""
  arguments = [f"--{name}={value}" for name, value in {**settings, "output": table}.items()]
  budget.FLAGS.unparse_flags()
  budget.main(budget.FLAGS(["budget.py", *arguments]))

  # The run's own validation split, so that thresholds are not fitted to training examples.
  assert calls == [("digits", {"directory": None, "validation": 0.2, "seed": 1})]
  found = json.loads((run / "budget.json").read_text())
  costs = [row["multiply_adds"] for row in found["anytime"]]
  assert [row["budget"] for row in found["budgeted"]] == [costs[0], sum(costs) / 2, costs[1]]
  cheapest, middle, dearest = found["budgeted"]
  assert cheapest["accuracy"] == found["anytime"][0]["accuracy"]
  assert dearest["accuracy"] == found["anytime"][1]["accuracy"] == found["full"]["accuracy"]
  assert dearest["shares"] == [0, 1]
  assert costs[0] < middle["multiply_adds"] < costs[1]
  assert float(middle["thresholds"][-1]) == -np.inf
  assert found["full"]["multiply_adds"] < costs[1]
  assert all(row["milliseconds"] > 0 for row in found["budgeted"])
  assert found["timed_images"] == 9
  assert (run / "budget.png").read_bytes().startswith(b"\x89PNG")
  printed = capsys.readouterr().out
  assert "| whole network at once |" in printed
  assert printed.strip() in table.read_text()


@pytest.mark.parametrize(
  ("case", "message"),
  [
    ("none", "no finished run"),
    ("damaged", "summary.json is damaged"),
    ("alone", "its last stage, 'other', left no predictor 'ensemble'"),
    ("plain", "holds a MultiExit, expected an ensemble of one network's exits"),
  ],
)
def test_error_names_what_an_unusable_run_lacks(run, tmp_path, case, message):
  workdir = tmp_path / "run"
  if case == "damaged":
    workdir.mkdir()
    (workdir / "summary.json").write_text("{")
  if case == "alone":
    write_summary(workdir, last="other")
  if case == "plain":
    write_summary(workdir, last="plain")
    (workdir / "bundles").symlink_to(run / "bundles")
  with pytest.raises(ConfigError, match=message):
    budget.load_run(workdir)


def test_run_without_validation_split_is_refused():
  with pytest.raises(ConfigError, match=r"data\.validation=0"):
    budget.load_data({"seed": 1, "data": {"name": "digits", "validation": 0.0, "directory": ""}})
