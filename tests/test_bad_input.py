"""Wrong input gives one readable line, before anything is compiled or written."""

import json
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxkd.train.evaluate
import jaxkd.train.loop
from jaxkd import models
from jaxkd.data import ArrayExamples, Dataset, training_batches
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, run
from jaxkd.export.bundles import save_bundle
from jaxkd.methods import METHODS
from jaxkd.runtime.processes import LOCK, workdir_lock
from jaxkd.train.checkpoints import Checkpoints
from jaxkd.train.state import FirstState
from jaxkd.types import Batch, Network

ROOT = pathlib.Path(__file__).parents[1]


def settings_for(name="kd", /, **changes):
  """A small config; sections change as `student={"model": ...}`."""
  settings = config.base_config(name)
  settings.batch_size = 16
  settings.teacher.model = "resnet8_w8"
  settings.student.model = "resnet8_w4"
  settings.update(changes)
  return settings


def dataset(shape=(8, 8, 1), classes=10):
  def examples(count):
    labels = np.arange(count, dtype=np.int32) % classes
    indices = np.arange(count, dtype=np.int32)
    return ArrayExamples(np.zeros((count, *shape), np.uint8), labels, indices)

  # The config's validation field is not used: nothing here is trained.
  parts = examples(32), examples(16), examples(16)
  return Dataset("digits", *parts, classes, shape, (0.5,) * shape[-1], (0.2,) * shape[-1])


def contents(folder):
  """Return the bytes of all files except the lock, which is empty."""
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
  return {str(path): path.read_bytes() for path in files}


@pytest.fixture
def refuse(monkeypatch, tmp_path):
  """refuse(settings, message): the run ends with that one line, untrained and unwritten."""

  def train(*args, **options):
    raise AssertionError("a step was to be compiled")

  monkeypatch.setattr(jaxkd.train.loop.mapping, "map_training_step", train)
  monkeypatch.setattr(run, "load", lambda *args, **options: dataset())

  def check(settings, message, workdir=tmp_path / "run"):
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
      run.run(settings, workdir, Console(quiet=True))
    assert len(str(caught.value).splitlines()) == 1
    assert contents(tmp_path) == before
    assert workdir.exists() == any(name.startswith(str(workdir)) for name in before)

  return check


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (
      settings_for(student={"model": "resnet9"}),
      r"^unknown model 'resnet9': did you mean 'resnet8' .*known: .*resnet110, ",
    ),
    (
      settings_for(teacher={"model": "resnt20"}),
      r"^unknown model 'resnt20': did you mean 'resnet20",
    ),
    (
      settings_for("fitnets", method={"stage": "stage4"}),
      r"^unknown stage of the student 'stage4': did you mean 'stage3'.*known: pooled, stage1",
    ),
    (settings_for("at", method={"stages": ("stem", "stag1")}), r"'stag1': did you mean 'stage1'"),
    (settings_for("simkd", method={"stage": "last"}), r"^unknown stage of the student 'last'"),
    (settings_for(batch_size=20), r"^batch_size=20: not divisible by 8 \(8 devices"),
    (settings_for(devices=9), r"^devices=9: this machine has 8 \(cpu\)$"),
    (settings_for(batch_size=16, accumulate=4), r"^batch_size=16: not divisible by 32"),
    (settings_for(method={"temperature": 0.0}), r"^method.temperature=0.0: expected a number > 0$"),
    (
      settings_for(method={"temperature": -4.0}),
      r"^method.temperature=-4.0: expected a number > 0$",
    ),
    (
      settings_for("simkd", method={"reduction": 5}),
      r"^stage 'stage3': no projector from student \(2, 2, 2, 16\) to teacher \(2, 2, 2, 32\): "
      r"reduction is 5",
    ),
    (
      settings_for("simkd", student={"model": "mlp"}),
      r"^the student has no feature maps \(B, H, W, C\) to compare: it gives stage1 \(256,\), ",
    ),
    (
      settings_for("at", method={"stages": ("stage3", "pooled")}),
      r"^stage 'pooled': .*student \(2, 16\) is not a feature map \(B, H, W, C\)",
    ),
    (
      settings_for(student={"momentum": 0.0, "nesterov": True}),
      r"^student.nesterov=True: needs momentum > 0, got student.momentum=0$",
    ),
    (settings_for(data={"crop": 9}), r"^data.crop=9: expected an integer <= 8, as the images of "),
    (settings_for(data={"cutout": 9}), r"^data.cutout=9: expected an integer <= 8, as the images"),
    (
      settings_for(data={"crop": 2, "resized_crop": 8}),
      r"^data.crop=2: expected 0 with data.resized_crop=8$",
    ),
    (
      settings_for(student={"epochs": 2**31 - 1}),
      r"^phase 'alone': 2147483647 epochs of 2 updates each are more than int32 counts$",
    ),
    (
      settings_for(student={"warmup_epochs": 1e30}),
      r"^warmup_epochs=1e\+30: more updates than int32 counts$",
    ),
    (
      settings_for("dml", method={"models": ("student",) * 3}),
      r"^method.models=\('student', 'student', 'student'\): expected at most 2, as method.peers",
    ),
    (settings_for(data={"per_class": 100}), r"^data.per_class=100: class 0 has only 4 examples$"),
    (settings_for(data={"unlabelled": 8}), r"^data.unlabelled=8: data.per_class=0 leaves no image"),
    (
      settings_for(data={"per_class": 3, "unlabelled": 8}),
      r"^data.unlabelled=8: only 2 examples are left$",
    ),
    (
      settings_for(data={"test_per_class": 9}),
      r"^data.test_per_class=9: class 0 has only 2 examples in the test split$",
    ),
    (
      settings_for(cached_targets=True, data={"flip": True}),
      r"^data.views=0: expected an integer >= 1 with cached_targets=True, since data.flip=True",
    ),
    (
      settings_for(cached_targets=True, data={"mixup": 0.2, "views": 2}),
      r"^data.mixup=0.2: expected 0 with cached_targets=True",
    ),
  ],
  ids=lambda value: None if hasattr(value, "items") else value[:40],
)
def test_a_wrong_value_is_refused_before_compilation_and_writes(refuse, settings, message):
  refuse(settings, message)


def test_an_unknown_data_set_is_refused_with_similar_names(refuse, monkeypatch):
  from jaxkd.data import load

  monkeypatch.setattr(run, "load", load)
  refuse(settings_for(data={"name": "cifar"}), r"^unknown data set 'cifar': did you mean 'cifar10")


def test_an_unknown_method_or_field_is_refused_with_similar_names(refuse):
  settings = settings_for().unlock()
  settings.method.name = "bornagain"
  refuse(settings, r"^unknown method 'bornagain': did you mean 'born_again'\? known: ab, alone, at")
  settings = settings_for().unlock()
  settings.student.weight_deca = 0.0
  refuse(
    settings, r"^unknown field of student 'weight_deca': did you mean 'weight_decay' or 'weights'\?"
  )


@pytest.mark.parametrize("shape", [(2, 2, 1), (3, 8, 1)])
def test_the_error_names_the_size_of_images_a_model_cannot_take(refuse, monkeypatch, shape):
  monkeypatch.setattr(run, "load", lambda *args, **options: dataset(shape))
  size = f"{shape[0]}x{shape[1]}"
  refuse(
    settings_for(),
    rf"^teacher.model='resnet8_w8' cannot take digits's images: images of {size} are too small: "
    "this model takes 4x4",
  )
  refuse(settings_for("alone"), rf"^student.model='resnet8_w4' cannot take .* of {size}")


@pytest.fixture
def bundle(tmp_path):
  """A bundle of an untrained resnet8_w8 for 10 classes."""
  module = models.create("resnet8_w8", num_classes=10)
  images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  description = {"model": "resnet8_w8", "image_shape": [8, 8, 1]}
  save_bundle(tmp_path / "bundle", Network(module, variables), description)
  return tmp_path / "bundle"


def test_a_teacher_bundle_of_another_architecture_is_refused(refuse, bundle):
  refuse(
    settings_for(teacher={"bundle": str(bundle), "model": "resnet20"}),
    rf"^teacher.bundle='{bundle}' holds a resnet8_w8, but teacher.model='resnet20'",
  )


def test_a_teacher_bundle_whose_weights_differ_from_its_description_is_refused(refuse, bundle):
  document = json.loads((bundle / "model.json").read_text())
  document["network"]["fields"]["widths"] = [8, 8, 16, 64]
  (bundle / "model.json").write_text(json.dumps(document))
  refuse(
    settings_for(teacher={"bundle": str(bundle), "model": ""}),
    rf"^bundle {bundle}: weights of another architecture: \d+ of another shape ",
  )


def test_a_missing_teacher_bundle_is_named(refuse, tmp_path):
  missing = tmp_path / "nothing"
  refuse(
    settings_for(teacher={"bundle": str(missing)}), f"^{missing} is not a bundle: no model.json"
  )


def test_student_and_teacher_of_different_class_counts_are_refused(refuse, bundle, monkeypatch):
  monkeypatch.setattr(run, "load", lambda *args, **options: dataset(classes=7))
  able = [name for name, m in METHODS.items() if m.distillations and not m.same_classes]
  assert {"fitnets", "at", "rkd"} < set(able) and "kd" not in able
  refuse(
    settings_for(teacher={"bundle": str(bundle), "model": ""}),
    rf"^teacher.bundle='{bundle}' predicts 10 classes, the student 7 \(data set 'digits'\), and "
    rf"method 'kd' compares logits; these compare no logits: {', '.join(able)}$",
  )


def hold(workdir, settings):
  """Makes `workdir` that of a run of `settings`."""
  workdir.mkdir()
  text = json.dumps(settings.to_dict(), indent=2, sort_keys=True)
  (workdir / "config.json").write_text(text + "\n")


def test_a_workdir_of_another_config_is_refused_and_the_difference_named(refuse, tmp_path):
  hold(tmp_path / "run", settings_for())
  refuse(
    settings_for(seed=3, student={"epochs": 7}),
    rf"^workdir {tmp_path}/run holds another config's run \(seed=0 there, 3 asked, "
    r"student.epochs=240 there, 7 asked\)$",
  )
  refuse(settings_for("simkd"), r"holds another config's run .* and \d+ more fields\)$")


def test_a_teachers_run_resumes_with_another_student(tmp_path):
  hold(tmp_path / "run", settings_for("teacher"))
  run.refuse_other_run(settings_for("teacher", student={"epochs": 7}), tmp_path / "run")
  with pytest.raises(ConfigError, match=r"teacher.epochs=240 there, 7 asked"):
    run.refuse_other_run(settings_for("teacher", teacher={"epochs": 7}), tmp_path / "run")


def test_a_run_resumes_on_other_devices(tmp_path):
  hold(tmp_path / "run", settings_for())
  elsewhere = settings_for(devices=4, cpu_devices=3, checkpoint_seconds=5.0)
  run.refuse_other_run(elsewhere, tmp_path / "run")


def test_results_of_another_config_are_not_shown(refuse, tmp_path):
  hold(tmp_path / "run", settings_for())
  (tmp_path / "run" / "summary.json").write_text("{}")
  refuse(settings_for(seed=3), r"holds another config's run \(seed=0 there, 3 asked\)$")


@pytest.mark.parametrize("text", ["", '{"stages": {"alo', "[]", "{}"])
def test_a_damaged_summary_of_a_run_is_named(refuse, tmp_path, text):
  hold(tmp_path / "run", settings_for())
  (tmp_path / "run" / "summary.json").write_text(text)
  refuse(settings_for(), f"^{tmp_path}/run/summary.json is damaged .* makes it anew from the chec")


def test_a_workdir_with_other_files_is_refused(refuse, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "thesis.tex").write_text("everything")
  refuse(settings_for(), f"^workdir {tmp_path}/run is not empty and holds no run; choose another$")
  file = tmp_path / "run" / "thesis.tex"
  refuse(settings_for(), f"^workdir {file} is not empty and holds no run", workdir=file)


def test_a_workdir_that_cannot_be_written_is_named(refuse, tmp_path):
  (tmp_path / "file").write_text("everything")
  workdir = tmp_path / "file" / "run"
  message = (
    rf"^workdir {workdir} cannot be written \(Not a directory\); mend that or choose another$"
  )
  refuse(settings_for(), message, workdir=workdir)


def test_the_workdir_of_a_run_in_progress_is_refused(refuse, tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  message = f"^workdir {workdir} is in use by another run; wait for its end or choose another$"
  with workdir_lock(workdir):
    with pytest.raises(ConfigError, match=message), workdir_lock(workdir):
      raise AssertionError("two have it")
    (workdir / "config.json").write_text(json.dumps(settings_for().to_dict()))
    monkeypatch.delattr(run, "load")  # it is refused before data are loaded
    refuse(settings_for(), message)
    # Reading a finished run needs no lock.
    (workdir / "summary.json").write_text('{"stages": {}}')
    monkeypatch.setattr(run.report, "closing_table", lambda summary: "table")
    assert run.run(settings_for(), workdir, Console(quiet=True)) == {"stages": {}}


def test_a_stale_lock_does_not_block_a_run(tmp_path):
  with workdir_lock(tmp_path / "run"):
    pass
  run.refuse_other_run(settings_for(), tmp_path / "run")
  with workdir_lock(tmp_path / "run"):
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_damaged_config_of_a_run_is_named(refuse, tmp_path):
  hold(tmp_path / "run", settings_for())
  (tmp_path / "run" / "config.json").write_text('{"seed": ')
  refuse(settings_for(), f"^{tmp_path}/run/config.json is damaged: ")


def test_a_truncated_checkpoint_is_named_and_kept(refuse, tmp_path):
  settings, workdir = settings_for("alone"), tmp_path / "run"
  [stage] = build.phases(settings, dataset())
  example = Batch(np.zeros((2, 8, 8, 1), np.float32), *np.zeros((3, 2), np.int32))
  shapes = FirstState(stage.scheme, stage.optimizer, example).shapes
  state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  hold(workdir, settings)
  checkpoints = Checkpoints(workdir / "checkpoints" / "alone")
  progress = {"sums": {}, "rows": [], "best_accuracy": None, "best_epoch": None}
  batches = training_batches(stage.examples, batch_size=16, seed=0)
  checkpoints.save(2, state, state.participants, progress, batches)
  checkpoints.close()
  files = [f for f in (workdir / "checkpoints/alone/2/state").rglob("*") if f.is_file()]
  for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  refuse(settings, rf"^no checkpoint in {workdir}/checkpoints/alone can be read: checkpoint 2: \S+")


# The same through the real command line.

KD = ["--config", "configs/digits.py:kd"]
COMMANDS = {
  "method": ["--config", "configs/digits.py:bornagain"],
  "field": [*KD, "--config.student.learning_rat=1"],
  "section": [*KD, "--config.studen.learning_rate=1"],
  "type": [*KD, "--config.batch_size=abc"],
  "value": [*KD, "--config.method.temperature=0"],
  "file": ["--config", "configs/digit.py:kd"],
  "workdir": KD,
}
LINES = {
  "method": "error: unknown method 'bornagain': did you mean 'born_again'? known: ab, alone, at, ",
  "field": "error: unknown field of student 'learning_rat': did you mean 'learning_rate'? known: ",
  "section": "error: a field that the config does not have: 'studen' Did you mean \"student\"",
  "type": "error: flag --config.batch_size=abc: invalid literal for int() with base 10: 'abc'",
  "value": "error: method.temperature=0.0: expected a number > 0",
  "file": "error: --config: [Errno 2] No such file or directory: 'configs/digit.py'",
  "workdir": "error: --workdir must be given: where checkpoints and results of the run go",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
  """The output of each command, and its work directory."""
  folder = tmp_path_factory.mktemp("workdirs")

  def answer(case):
    workdir = folder / case
    command = [sys.executable, "experiments/train.py", *COMMANDS[case]]
    command += ["--workdir", str(workdir)] if case != "workdir" else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    return done, workdir

  with ThreadPoolExecutor(2) as pool:
    return dict(zip(COMMANDS, pool.map(answer, COMMANDS), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_line_prints_one_line_and_fails(answers, case):
  done, workdir = answers[case]
  assert done.returncode != 0
  assert done.stdout == ""
  assert done.stderr.startswith(LINES[case])
  assert done.stderr.count("\n") == 1
  assert not workdir.exists()
