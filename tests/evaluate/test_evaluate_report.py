"""`jaxkd evaluate --report` on bundles of untrained networks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, models
from jaxkd.commands import evaluate
from jaxkd.errors import ConfigError
from jaxkd.experiment import student_report
from jaxkd.export.bundles import save_bundle
from jaxkd.types import Network

SHAPE, N = (4, 4, 1), 24
IMAGES = {"image_shape": list(SHAPE), "mean": [0.3], "std": [0.4], "data": "tiny"}


def dataset(classes=3, shape=SHAPE):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (N, *shape), dtype=np.uint8)
  labels = (np.arange(N) % 2).astype(np.int32)  # the third class is empty
  examples = data.ArrayExamples(pixels, labels, np.arange(N, dtype=np.int32))
  return data.Dataset("tiny", examples, None, examples, classes, shape, (0.3,), (0.4,))


def bundle(path, seed=0, classes=3, shift=0.0, **description):
  module = models.MLP((4,), num_classes=classes)
  shape = description.get("image_shape", SHAPE)
  variables = module.init(jax.random.key(seed), jnp.zeros((1, *shape)))
  variables = jax.tree.map(lambda x: np.asarray(x) + shift, variables)
  given = {name: value for name, value in {**IMAGES, **description}.items() if value is not None}
  save_bundle(path, Network(module, variables), given)
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("bundles")
  for number, name in enumerate(("student", "teacher", "alone")):
    bundle(path / name, number)
  return path


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setattr(data, "load", lambda name, **_: dataset())
  monkeypatch.setattr("jaxkd.experiment.student_costs._ROUNDS", 5)


def command(**given):
  evaluate.FLAGS.unparse_flags()
  arguments = [f"--{name}={value}" for name, value in given.items()]
  evaluate.main(evaluate.FLAGS(["evaluate.py", *arguments]))


@pytest.mark.long
def test_the_command_reports_a_student_beside_teacher_and_baseline(folder, tmp_path, capsys):
  command(
    bundle=folder / "student",
    teacher=folder / "teacher",
    baseline=folder / "alone",
    report=tmp_path / "report",
    output=tmp_path / "scores.json",
  )
  printed = capsys.readouterr().out
  assert printed.startswith("| network | test accuracy | cross-entropy, nats | calibration error |")
  assert f"report: {tmp_path / 'report' / 'report.html'}" in printed
  assert "class '2' has no image here: it has no accuracy and no gap" in printed
  tree = json.loads((tmp_path / "report" / "report.json").read_text())
  plain = json.loads((tmp_path / "scores.json").read_text())["student"]
  own = tree["predictors"]["student"]
  assert own["scores"]["top1"] == pytest.approx(plain["accuracy"])
  assert own["scores"]["nll"] == pytest.approx(plain["cross_entropy"], rel=1e-5)
  assert set(own["differences"]) == {"teacher", "baseline"}
  costs = tree["costs"]["student"]
  assert (costs["parameters"], costs["bytes"]) == (83, 332)
  assert costs["multiply_adds"] == 16 * 4 + 4 * 3
  assert [row["batch"] for row in costs["batches"]] == [1, 64]
  for row in costs["batches"]:
    assert 0 < row["low"] <= row["milliseconds"] <= row["high"]
    assert row["rounds"] == 5
  assert len(tree["cka"]["values"]) == len(tree["cka"]["student"])


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"classes": 4}, "teacher: predicts 4 classes, data set 'tiny' has 3"),
    (
      {"image_shape": [5, 5, 1], "mean": None, "std": None},
      "teacher: takes images 5x5x1, and data set 'tiny' has images 4x4x1",
    ),
    ({"shift": np.nan}, "teacher_logits: not finite for 24 of 24 examples"),
  ],
)
def test_a_teacher_that_does_not_fit_is_one_line_and_nothing_is_written(
  folder, tmp_path, given, message
):
  teacher = bundle(tmp_path / "wrong", **given)
  with pytest.raises(ConfigError, match=message) as error:
    command(bundle=folder / "student", teacher=teacher, report=tmp_path / "report")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "report").exists()


def test_a_folder_of_several_networks_is_no_student(folder, tmp_path):
  with pytest.raises(ConfigError, match="holds a predictor 'teacher': expected one student's"):
    student_report.student_report(student_report.Sources(folder))
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError, match="is a file, expected a directory"):
    command(bundle=folder / "student", report=tmp_path / "file")
