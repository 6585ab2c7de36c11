"""`jaxkd evaluate --report` on bundles of untrained networks."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, models
from jaxkd.commands import compare, evaluate
from jaxkd.errors import ConfigError
from jaxkd.experiment import student_report
from jaxkd.experiment.config import base_config
from jaxkd.export.bundles import save_bundle
from jaxkd.types import Network
from tests.report.student_case import made

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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The directory of a finished run, without training."""
  workdir = tmp_path_factory.mktemp("run")
  for name in ("teacher/teacher", "alone/student", "distilled/exit_0", "distilled/ensemble"):
    bundle(workdir / "bundles" / name)
  roles = {
    "teacher": ("teacher", "teacher"),
    "alone": ("baseline", "student"),
    "distilled": ("student", "ensemble"),
  }
  stages = {name: {"role": role, "predictor": p} for name, (role, p) in roles.items()}
  config = base_config("kd")
  config.data.name, config.seed = "tiny", 3
  stored = json.loads(config.to_json())
  (workdir / "summary.json").write_text(json.dumps({"stages": stages, "config": stored}))
  del stored["keep_by"], stored["data"]["labels"]  # fields that an earlier version did not have
  (workdir / "config.json").write_text(json.dumps(stored))
  return workdir


def test_a_run_has_the_student_its_teacher_and_its_baseline(finished, tmp_path):
  found = student_report._of_run(student_report.Sources(finished))
  bundles = finished / "bundles"
  assert found.student == bundles / "distilled"
  assert found.teacher == bundles / "teacher" / "teacher"
  assert found.baseline == bundles / "alone" / "student"
  assert list(student_report._found(found.student)) == ["ensemble", "exit_0"]
  given = student_report._of_run(student_report.Sources(finished, teacher=tmp_path))
  assert given.teacher == tmp_path
  assert student_report.reported_bundle(finished) == bundles / "distilled" / "ensemble"


def test_the_data_of_a_bundle_in_a_run_are_those_of_its_config(finished, folder, monkeypatch):
  own = finished / "bundles" / "distilled" / "ensemble"
  settings = student_report._settings_of(own)
  assert (settings.data.name, settings.seed, settings.data.labels) == ("tiny", 3, "single")
  assert student_report._settings_of(folder / "student") is None
  asked = []
  monkeypatch.setattr(student_report.build, "dataset", lambda given: asked.append(given) or split)
  split = dataset()
  sources = student_report.Sources(own)
  assert student_report._data(sources, own) == (split, None)
  assert len(asked) == 1
  # Another data set is not that of the run: its validation images may have been trained on.
  other = student_report.Sources(own, data="other")
  assert student_report._data(other, own)[1] is None
  assert len(asked) == 1


def test_the_page_of_compare_links_every_student(finished, tmp_path, monkeypatch):
  asked = []

  def written(folder, baseline):
    asked.append((folder.name, baseline and baseline.parent.parent.parent.name))
    return folder / "report" / "report.html", made()

  monkeypatch.setattr(student_report, "write_report_of_run", written)
  compare.FLAGS.unparse_flags()
  compare.FLAGS(["compare.py", "--config=configs/digits.py", f"--workdir={tmp_path}"])
  shutil.copytree(finished, tmp_path / "seed0" / "alone")
  runs = {(name, None): [tmp_path / "seed0" / name] for name in ("teacher", "alone", "kd")}
  compare._write_reports(tmp_path / "all.html", runs)
  assert asked == [("alone", None), ("kd", "alone")]
  text = (tmp_path / "all.html").read_text()
  assert 'href="seed0/kd/report/report.html">seed0, kd</a>' in text
