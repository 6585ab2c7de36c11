"""`teacher.logits`: a run whose teacher is a file of logits."""

import dataclasses
import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxkd.data import Dataset, TreeExamples, split_off
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, dry_run
from jaxkd.experiment import run as experiment
from jaxkd.experiment.teacher_logits import write_logits
from jaxkd.export.bundles import save_bundle
from jaxkd.models import MLP
from jaxkd.tables import Table
from jaxkd.types import Network, Preprocessing
from tests import tiny
from tests.models.drawn import drawn
from tests.train.test_resume import assert_same

# Whole runs.
pytestmark = pytest.mark.long

WHOLE = tiny.examples(90)
REST, HELD_OUT = split_off(WHOLE, 0.2, seed=0)
THIRDS = Dataset("thirds", REST, HELD_OUT, tiny.examples(30, seed=2), 3, (6, 6, 1), (0.5,), (0.25,))
LOGITS = np.float32(4 * np.eye(3)[WHOLE.labels] + np.random.default_rng(0).normal(size=(90, 3)))


def settings_for(path, method="kd", /, **fields):
  settings = config.base_config(method)
  settings.batch_size, settings.baseline, settings.sync_batch_norm = 24, False, False
  settings.student.update({"model": "mlp", "epochs": 2, "learning_rate": 0.02})
  settings.teacher.logits = str(path)
  for name, value in fields.items():
    section, _, field = name.partition("_")
    if section in ("data", "teacher"):
      settings[section][field] = value
    else:
      settings[name] = value
  return settings


def phases(path, method="kd", /, data=THIRDS, **fields):
  settings = settings_for(path, method, **fields)
  config.check_config(settings)
  return build.phases(settings, data)


def run(settings, folder, data=THIRDS):
  console = Console(file=io.StringIO(), width=200)
  summary = experiment.run(settings, folder, console, load_data=lambda *a, **k: data)
  return summary, console.file.getvalue()


def saved(folder, array, name="logits.npy"):
  np.save(folder / name, array)
  return folder / name


def zipped(folder, **arrays):
  np.savez(folder / "top.npz", **arrays)
  return folder / "top.npz"


def test_a_run_learns_from_the_row_of_each_example(tmp_path):
  path = saved(tmp_path, LOGITS)
  teacher, student = phases(path)
  assert (teacher.epochs, teacher.reported, teacher.notes) == (0, "", ())
  batch = dataclasses.replace(
    tiny.batch(4), indices=np.array([5, 80, 3, 3]), labels=jnp.zeros(4, jnp.int32)
  )
  table = student.tables["teacher"]
  batch = dataclasses.replace(batch, tables={"teacher": table.rows(batch.indices)})
  found = student.scheme.targets(dict(teacher.given), batch)["kd"].logits
  np.testing.assert_array_equal(found, LOGITS[[5, 80, 3, 3]])

  summary, said = run(settings_for(path), tmp_path / "run")
  assert "accuracy" not in summary["stages"]["teacher"]
  assert summary["stages"]["distilled"]["accuracy"] > 0.9
  assert "logits.npy" in said and "not scored" in said and "gap closed" not in said
  assert not (tmp_path / "run/bundles/teacher").exists()
  again, said = run(settings_for(path), tmp_path / "run")
  assert again == summary and "is complete" in said


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
  """The bundle of a teacher that has seen other images than the run's."""
  module = MLP(widths=(8,), num_classes=3)
  variables = jax.device_get(drawn(module, jnp.ones((1, 6, 6, 1))))
  network = Network(module, variables, Preprocessing((0.3,), (0.2,), (6, 6)))
  folder = tmp_path_factory.mktemp("bundle") / "teacher"
  save_bundle(folder, network, {"model": "mlp", "image_shape": [6, 6, 1]})
  return folder


@pytest.mark.parametrize("views", [0, 2])
def test_logits_written_from_a_bundle_train_like_the_bundle(tmp_path, bundle, views):
  fields = {"data_views": views, "data_crop": 1 if views else 0, "data_flip": bool(views)}
  network = settings_for("", teacher_bundle=str(bundle), teacher_model="", **fields)
  path = tmp_path / "folder" / "logits.npy"
  shape = write_logits(network, path, load_data=lambda *a, **k: THIRDS)
  assert shape == ((2, 90, 3) if views else (90, 3)) == np.load(path).shape
  assert np.isfinite(np.load(path)).all() and np.load(path).any(-1).all()
  want, _ = run(network, tmp_path / "network")
  found, _ = run(settings_for(path, **fields), tmp_path / "file")
  ours, theirs = (s["stages"]["distilled"] for s in (found, want))
  assert ours["train"].keys() == theirs["train"].keys()
  for name, value in theirs["train"].items():
    assert ours["train"][name] == pytest.approx(value, rel=1e-3), name
  assert ours["accuracy"] == theirs["accuracy"]


def test_logits_are_written_of_one_trained_teacher_only(tmp_path, bundle):
  load = {"load_data": lambda *a, **k: THIRDS}
  for settings in (
    settings_for("", teacher_model="mlp"),
    settings_for("", "alone"),
    settings_for(saved(tmp_path, LOGITS)),
    settings_for("", teacher_bundle=f"{bundle},{bundle}", teacher_model=""),
  ):
    with pytest.raises(ConfigError, match=r"^method.name=.*: expected one teacher that comes"):
      write_logits(settings, tmp_path / "out.npy", **load)
  settings = settings_for("", teacher_bundle=str(bundle), teacher_model="", data_flip=True)
  with pytest.raises(ConfigError, match=r"^data.views=0: expected an integer >= 1 with logits in"):
    write_logits(settings, tmp_path / "out.npy", **load)
  assert not (tmp_path / "out.npy").exists()


def test_rows_from_the_host_and_several_devices_train_alike(tmp_path):
  path, rows = saved(tmp_path, LOGITS), []
  for name, fields in {
    "one": {"devices": 1},
    "host": {"devices": 1, "resident_megabytes": 0},
    "four": {"devices": 4},
    "parts": {"devices": 2, "accumulate": 3},
  }.items():
    summary, _ = run(settings_for(path, **fields), tmp_path / name)
    rows.append(summary["stages"]["distilled"]["train"])
  for row in rows[1:]:
    for name, value in rows[0].items():
      assert row[name] == pytest.approx(value, rel=1e-3), name


def test_unlabelled_examples_learn_from_their_rows(tmp_path):
  fields = {"data_per_class": 4, "data_unlabelled": 30}
  summary, _ = run(settings_for(saved(tmp_path, LOGITS), **fields), tmp_path / "run")
  assert summary["stages"]["distilled"]["examples"] == 42
  assert summary["stages"]["distilled"]["train"]["kd_logit"] > 0


@pytest.mark.parametrize("missing", ["impossible", "spread"])
def test_top_k_values_say_what_the_other_classes_get(tmp_path, missing):
  exact = np.asarray(jax.nn.log_softmax(LOGITS))
  order = np.argsort(-exact, -1)[:, :2]
  path = zipped(tmp_path, indices=order, values=np.take_along_axis(exact, order, -1))
  teacher, student = phases(path, teacher_missing=missing)
  [note] = teacher.notes
  assert note.startswith("2 of 3 classes per example; the others have") and missing in note
  rows = {"teacher": student.tables["teacher"].rows(np.arange(4))}
  batch = dataclasses.replace(tiny.batch(4), tables=rows)
  found = student.scheme.targets(dict(teacher.given), batch)["kd"].logits
  if missing == "spread":  # one class is missing: it has the rest
    np.testing.assert_allclose(found, exact[:4], rtol=1e-3)
  else:
    assert (np.isneginf(found).sum(-1) == 1).all()
  summary, _ = run(settings_for(path, teacher_missing=missing), tmp_path / "run")
  assert np.isfinite(summary["stages"]["distilled"]["train"]["kd_logit"])


def test_rows_in_another_order_are_reported(tmp_path):
  teacher, _ = phases(saved(tmp_path, np.roll(LOGITS, 1, 0)))
  [note] = teacher.notes
  assert note.startswith("warning: its highest logit is the label of") and "no better" in note


def test_a_data_set_whose_held_out_part_is_its_own_has_only_its_training_examples(tmp_path):
  own = dataclasses.replace(THIRDS, train=WHOLE, validation=tiny.examples(12, seed=3))
  assert phases(saved(tmp_path, LOGITS), data=own)
  gaps = dataclasses.replace(THIRDS, train=WHOLE.take(np.arange(0, 80, 2)), validation=None)
  assert phases(saved(tmp_path, LOGITS), data=gaps)
  with pytest.raises(ConfigError, match=r"has 78 examples: expected at least 79, the whole"):
    phases(saved(tmp_path, LOGITS[:78]), data=gaps)


def test_a_dry_run_takes_stored_logits(tmp_path):
  settings = settings_for(saved(tmp_path, LOGITS))
  plan = dry_run.prepare(settings, load_data=lambda *a, **k: THIRDS)
  lowered = dry_run.lower(plan, platforms=("cpu",), device_count=2)
  assert [(x.phase, x.step) for x in lowered] == [
    ("distilled", "training"),
    ("distilled", "evaluation"),
  ]
  assert [ran.phase for ran in dry_run.dry_run(plan)] == ["distilled"]


def test_an_archive_may_hold_all_logits_and_top_k_values_of_views(tmp_path):
  path = zipped(tmp_path, logits=LOGITS)
  [array] = phases(path)[1].tables["teacher"].arrays.values()
  np.testing.assert_array_equal(array[0], LOGITS)
  with pytest.raises(ConfigError, match=r"missing='spread': expected 'impossible', as no class"):
    phases(path, teacher_missing="spread")
  views = {name: np.stack([array, array]) for name, array in TOP.items()}
  table = phases(zipped(tmp_path, **views), data_views=2)[1].tables["teacher"]
  assert (table.views, len(table)) == (2, 90)


def test_a_changed_file_is_read_again(tmp_path):
  path = saved(tmp_path, LOGITS)
  first = phases(path)[1].tables["teacher"]
  assert phases(path)[1].tables["teacher"] is first
  saved(tmp_path, np.float64(LOGITS))
  assert phases(path)[1].tables["teacher"] is not first


INTEGERS = np.zeros((90, 3), np.int32)
ONE_NAN = np.where(np.arange(90)[:, None] == 41, np.nan, LOGITS)
TOP = {"indices": np.tile([0, 1], (90, 1)), "values": np.ones((90, 2), np.float32)}


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (LOGITS[:89], "has 89 examples: expected 90, the whole training split of 'thirds'"),
    (np.concatenate([LOGITS, LOGITS]), "has 180 examples: expected 90"),
    (LOGITS[REST.indices], "has 72 examples: expected 90, .* of which 72 are trained on"),
    (LOGITS[:, :2], "has 2 classes: expected 3, those of 'thirds'"),
    (LOGITS[:, 0], r"an array of shape \(90,\): expected \(examples, classes\), or \(views"),
    (np.float32(1), r"an array of shape \(\): expected"),
    (LOGITS[None, None], r"an array of shape \(1, 1, 90, 3\): expected"),
    (INTEGERS, r"logits: expected floats, got int32 \(90, 3\)"),
    (np.array([[None, {}]] * 90), "Python objects in dtype.; expected a .npy or .npz"),
    (ONE_NAN, "logits: row 41 has NaN"),
    (np.where(ONE_NAN == ONE_NAN, LOGITS, np.inf), "logits: row 41 has inf"),
    (LOGITS.astype([("a", "f4")]), "logits: expected floats, got"),
    ({**TOP, "indices": np.tile([0, 3], (90, 1))}, "indices: row 0 has a class that is not in 0.."),
    ({**TOP, "indices": np.tile([1, 1], (90, 1))}, "indices: row 0 has a class twice"),
    ({**TOP, "num_classes": np.int64(4)}, "has 4 classes: expected 3"),
    ({**TOP, "num_classes": np.float32(3)}, "num_classes: expected one integer, got float32"),
    ({"indices": TOP["indices"]}, "it has arrays indices: expected logits, or indices and values"),
    ({"a": LOGITS}, "it has arrays a: expected logits, or indices and values"),
    ({name: value[:80] for name, value in TOP.items()}, "has 80 examples: expected 90"),
    ({name: value[:, 0] for name, value in TOP.items()}, r"an array of shape \(90,\): expected"),
  ],
)
def test_a_wrong_file_is_a_one_line_error(tmp_path, array, message):
  if isinstance(array, dict):
    path = zipped(tmp_path, **array)
  else:
    path = tmp_path / "logits.npy"
    np.save(path, array, allow_pickle=True)
  with pytest.raises(ConfigError, match=r"^teacher.logits='.*'(:| has) ?") as error:
    phases(path)
  assert len(str(error.value).splitlines()) == 1
  error.match(message)


def test_labels_of_every_position_are_refused(tmp_path):
  parts = [TreeExamples(np.zeros((90, 4)), np.zeros((90, 5), int)) for _ in range(2)]
  dense = Dataset("dense", parts[0], None, parts[1], 3)
  with pytest.raises(ConfigError, match=r"examples of 'dense' have labels \(5,\) each, and a file"):
    phases(saved(tmp_path, LOGITS), data=dense)


@pytest.mark.parametrize(
  "content", ["missing", "folder", "empty", "text", "pickle", "cut", "zip", "deflated"]
)
def test_a_file_that_is_no_array_is_a_one_line_error(tmp_path, content):
  path = tmp_path / "logits.npy"
  if content == "folder":
    path.mkdir()
  elif content == "cut":
    path.write_bytes(saved(tmp_path, LOGITS, "whole.npy").read_bytes()[:400])
  elif content == "zip":
    path.write_bytes(zipped(tmp_path, logits=LOGITS).read_bytes()[:700])
  elif content == "deflated":
    np.savez_compressed(tmp_path / "whole.npz", logits=LOGITS)
    whole = bytearray((tmp_path / "whole.npz").read_bytes())
    whole[100:160] = bytes(60)
    path.write_bytes(whole)
  elif content != "missing":
    path.write_bytes({"empty": b"", "text": b"0.5,0.5\n", "pickle": pickle.dumps(LOGITS)}[content])
  with pytest.raises(ConfigError, match=r"^teacher.logits='.*logits.npy': \S") as error:
    phases(path)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"data_crop": 2},
      r"data.views=0: expected an integer >= 1 with teacher.logits=.*, since data.",
    ),
    ({"data_mixup": 0.2}, r"data.mixup=0.2: expected 0 with teacher.logits="),
    ({"data_flip": True, "data_views": 3}, r"data.flip=True: expected False, as teacher.logits"),
    (
      {"data_crop": 1, "data_views": 3},
      r"data.crop=1: expected 0, .* \(3, 90, 3\) of data.views=3",
    ),
    ({"cached_targets": True}, r"cached_targets=True: expected False with teacher.logits="),
    ({"teacher_bundle": "x"}, r"teacher.bundle='x' and teacher.logits=.*: expected one of them"),
    ({"teacher_weights": "x"}, r"teacher.weights='x' and teacher.logits=.*: expected one of them"),
    ({"teacher_stablehlo": "x"}, r"teacher.stablehlo='x' and teacher.logits=.*: expected one of"),
    ({"teacher_tap": "a=b"}, r"teacher.tap='a=b' and teacher.logits=.*: expected one of them"),
    ({"teacher_count": 2}, r"teacher.count=2 and teacher.logits=.*: expected one of them"),
    ({"teacher_new_head": True}, r"teacher.new_head=True and teacher.logits="),
    ({"teacher_finetune_epochs": 2}, r"teacher.finetune_epochs=2 and teacher.logits="),
    ({"teacher_mean": (0.5,)}, r"teacher.mean=\(0.5,\) and teacher.logits="),
    ({"teacher_missing": "spread"}, r"teacher.logits=.*: teacher.missing='spread': expected 'imp"),
  ],
)
def test_fields_that_contradict_a_file_are_a_one_line_error(tmp_path, fields, message):
  with pytest.raises(ConfigError, match=f"^{message}") as error:
    phases(saved(tmp_path, LOGITS), **fields)
  assert len(str(error.value).splitlines()) == 1


def test_a_file_is_the_teacher_whatever_teacher_model_names(tmp_path):
  path = saved(tmp_path, LOGITS)
  teacher, student = phases(path, teacher_model="tests.test_stored_teacher:network")
  assert student.tables["teacher"].digest.shape == (8,) and not teacher.reported


def network(num_classes):
  """Return a trained network, for `teacher.model`."""
  module = MLP((4,), num_classes=num_classes)
  return Network(module, module.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1))))


def test_missing_without_a_file_and_a_teacher_of_a_file_are_a_one_line_error(tmp_path):
  with pytest.raises(
    ConfigError, match=r"^teacher.missing='spread': expected 'impossible' without"
  ):
    phases("", teacher_missing="spread", teacher_model="mlp")
  with pytest.raises(ConfigError, match=r"^teacher.logits='.*': expected '' with method 'teacher'"):
    phases(saved(tmp_path, LOGITS), "teacher")


def test_views_of_a_file_are_those_of_the_run(tmp_path):
  path = saved(tmp_path, np.stack([LOGITS] * 3))
  assert phases(path, data_views=3, data_flip=True)[1].tables["teacher"].views == 3
  for views in (0, 2):
    with pytest.raises(
      ConfigError, match=rf"^data.views={views}: expected 3, the views in teacher"
    ):
      phases(path, data_views=views)


@pytest.mark.parametrize(
  "method",
  ["at", "nst", "fsp", "ft", "ab", "fitnets", "rkd", "simkd", "gradient_at", "kd+at", "kd+rkd"],
)
def test_a_method_that_needs_a_network_is_refused_in_one_line(tmp_path, method):
  with pytest.raises(ConfigError, match=r"^method.name='.*': '\w+' needs .* has logits alone") as e:
    phases(saved(tmp_path, LOGITS), method)
  assert len(str(e.value).splitlines()) == 1 and "teacher.logits=" in str(e.value)


def test_the_state_of_a_phase_holds_a_digest_and_not_the_table(tmp_path):
  teacher, student = phases(saved(tmp_path, LOGITS))
  assert_same(teacher.given, {"teacher": {"table": {"digest": Table(LOGITS).digest}}})
  assert student.tables["teacher"].digest.shape == (8,)
