"""Every method: its phases, and that its students learn in them."""

import ast
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from jaxkd import methods, models
from jaxkd.data import ArrayExamples, Dataset
from jaxkd.data.pipeline import training_batches
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, run
from jaxkd.networks import frozen, select
from jaxkd.runtime import devices
from jaxkd.train import check_phases
from jaxkd.types import Context
from tests.methods.one_step import assert_all_moved, assert_same, jit, updated
from tests.models.drawn import drawn
from tests.tiny import create
from tests.torch_weights import regenerate

GOLDEN_MODELS = Path(__file__).parents[1] / "golden" / "models"


def dataset():
  rng = np.random.default_rng(0)

  def examples(count):
    labels = np.arange(count, dtype=np.int32) % 4
    images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return ArrayExamples(images, labels, np.arange(count, dtype=np.int32))

  return Dataset("drawn", examples(16), examples(8), examples(8), 4, (8, 8, 1), (0.5,), (0.3,))


def settings_for(method):
  settings = config.base_config(method)
  settings.batch_size = 8
  settings.sync_batch_norm = False  # there is no mapped step here
  # One method shows that augmentation is there: it takes longer to compile than most methods.
  settings.data.crop = 1 if method == "kd" else 0
  settings.teacher.model = "resnet8_w8"
  settings.student.model = "resnet8_w4"
  settings.student.epochs = 1
  return settings


# Recipes with stages of their own.
STAGES = {
  "teacher": ["teacher"],
  "alone": ["alone"],
  "fsp/stages=('stage1','stage2')": ["teacher", "alone", "warmup", "distilled"],
  "ft/stage='stage2'": ["teacher", "alone", "paraphraser", "distilled"],
  "ab/stages=('stage1','stage2')": ["teacher", "alone", "warmup", "distilled"],
  "fitnets/two_stage=True": ["teacher", "alone", "warmup", "distilled"],
  "simkd/stage='stage2'/classifier='sequential'": ["teacher", "alone", "encoder", "distilled"],
  "kd": ["teacher", "alone", "distilled"],
  "kd+rkd": ["teacher", "alone", "distilled"],
  "born_again/generations=2": ["alone", "generation_1", "generation_2"],
  "dml": ["alone", "distilled"],
  "multi_exit/exits=('stage1',)": ["alone", "distilled"],
}


def settings_with(variant):
  """The config of "METHOD/field=value/..."; with a dot, fields of other sections."""
  method, *fields = variant.split("/")
  settings = settings_for(method)
  for field in fields:
    path, _, value = field.partition("=")
    section, _, name = path.rpartition(".")
    settings[section or "method"][name] = ast.literal_eval(value)
  return settings


def planned(variant, **changes):
  """The stages of "METHOD/field=value/..."."""
  settings = settings_with(variant)
  settings.update(changes)
  config.check_config(settings)
  return build.phases(settings, dataset())


@pytest.fixture
def tiny_models(monkeypatch):
  """The recipes get networks that compile fast; the teacher is the wider one."""
  monkeypatch.setattr(models, "create", create)


@pytest.mark.long
@pytest.mark.parametrize("variant", STAGES)
def test_a_method_names_its_stages(tiny_models, variant):
  stages = planned(variant)
  check_phases(stages)
  names = [stage.name for stage in stages]
  assert names == STAGES[variant]
  # Without the comparison, the student alone is still what the first generation is.
  if not variant.startswith(("alone", "born_again")):
    without = [stage.name for stage in planned(variant, baseline=False)]
    assert without == [name for name in names if name != "alone"]


# Forms of methods on networks of two stages; "nst" and "fsp" name theirs.
_FORMS = [
  "kd",
  "fitnets/two_stage=True",
  "at",
  "gradient_at/symmetry_weight=1.0",
  "nst/stages=('stage2',)",
  "fsp/stages=('stage1','stage2')",
  "rkd",
  "ft",
  "ab",
  "simkd",
  "simkd/reused_stages=1/projector='1x1-dw3x3-1x1'",
  "simkd/classifier='sequential'",
  "simkd/classifier='joint'",
  "born_again/generations=1/form='confidence'",
  "dml/peers=3/models=('student','resnet8_w8')",
  "one",
  "byot",
  "multi_exit",
  "deit/student.model='deit_mini_p4'",
  "vitkd/teacher.model='vit_tiny'/student.model='deit_mini_p4'",
]
# Every method that distils: in these forms, or by its defaults.
ON_TWO_STAGES = [
  *_FORMS,
  *sorted(
    {name for name, method in methods.METHODS.items() if method.distils and not method.only}
    - {variant.split("/")[0] for variant in _FORMS}
  ),
]


@pytest.mark.long
@pytest.mark.parametrize("variant", ON_TWO_STAGES)
def test_every_methods_learners_learn_in_each_of_its_phases(tiny_models, variant):
  for stage in planned(variant):
    if stage.name in ("teacher", "alone"):
      continue
    stored = next(training_batches(stage.examples, batch_size=8, seed=0, partners=stage.partners))
    before = drawn(stage.scheme, stage.prepare_evaluation(stored))
    after = updated(
      stage.scheme, before, stored, optimizer=stage.optimizer, prepare=stage.prepare_training
    )
    for name in frozen(before, stage.scheme.learners):
      assert_same(before[name], after[name])
    for learned in zip(
      *(jax.tree.leaves(select(tree, stage.scheme.learners)) for tree in (before, after)),
      strict=True,
    ):
      # A bias in front of a batch normalisation has no effect, so it may stand still.
      if learned[0].ndim > 1:
        assert_all_moved(*learned)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert set(stage.scheme.export(after)) >= ({stage.reported} if stage.reported else set())


def test_teachers_and_adapters_come_from_the_phases_that_trained_them(tiny_models):
  *_, paraphraser, distilled = planned("ft", teacher={"count": 2})[2:]
  assert paraphraser.name == "paraphraser_teacher_1"
  assert paraphraser.inherit == {"teacher": "teacher_1/teacher_1"}
  assert distilled.inherit == {
    "teacher": "teacher/teacher",
    "teacher_1": "teacher_1/teacher_1",
    "ft_stage2_teacher_connector": "paraphraser/paraphraser",
    "ft_teacher_1_stage2_teacher_connector": "paraphraser_teacher_1/paraphraser",
  }


def test_a_first_phase_trains_the_layers_it_reaches_and_the_second_starts_from_them():
  _, _, first, second = planned("fitnets/two_stage=True/first_epochs=3")
  assert (first.epochs, first.reported, second.epochs) == (3, "", 1)
  assert "student/stage2_0" in first.scheme.learners
  assert not {"student/stage3_0", "student/classifier"} & set(first.scheme.learners)
  assert second.inherit == {"student": "warmup/student", "teacher": "teacher/teacher"}


def terms_of(stage, step):
  """The weighted terms of a stage's objective at a step, on one batch."""
  data = next(training_batches(stage.examples, batch_size=8, seed=0, partners=stage.partners))
  data = stage.prepare_evaluation(data)
  context = Context(jax.random.key(0), jnp.int32(step))

  def objective(participants):
    learning = select(participants, stage.scheme.learners)
    targets = stage.scheme.targets(participants, data)
    return stage.scheme.loss(learning, participants, data, targets, context)[1].terms

  terms = jit(objective)(drawn(stage.scheme, data))
  return {name: float(term.total) for name, term in terms.items()}


@pytest.mark.long
def test_a_sum_of_methods_has_the_terms_of_each_and_one_label_term(tiny_models):
  kd, at = (terms_of(planned(name)[-1], 0) for name in ("kd", "at/stages=('stage1','stage2')"))
  at_stages = {"stages": ("stage1", "stage2")}
  both = terms_of(planned("kd+at", method={"at": at_stages})[-1], 0)
  assert both == pytest.approx({**kd, **at}, rel=1e-5)
  weighted = planned("kd+at", method={"at": at_stages, "kd": {"weight": 1.8}, "label_weight": 0.5})[
    -1
  ]
  expected = {"kd": 2 * both["kd"], "at": both["at"], "labels": 0.5 * both["labels"]}
  assert terms_of(weighted, 0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_a_ramp_scales_distillations_by_the_step(tiny_models):
  # 16 examples in batches of 8: 4 epochs are 8 steps.
  stage = planned("kd/ramp='linear'/ramp_epochs=4/ramp_start=0.5")[-1]
  full = terms_of(planned("kd")[-1], 0)
  for step, share in ((0, 0.5), (4, 0.75), (8, 1.0), (100, 1.0)):
    terms = terms_of(stage, step)
    assert terms["kd"] == pytest.approx(share * full["kd"], rel=1e-5)
    assert terms["labels"] == pytest.approx(full["labels"], rel=1e-5)


def test_several_teachers_share_the_weight(tiny_models):
  losses = planned("kd/teacher_weights=(1.0,3.0)", teacher={"count": 2})[-1]
  terms = terms_of(losses, 0)
  assert set(terms) == {"labels", "kd", "kd_teacher_1"}
  alike = terms_of(planned("kd", teacher={"count": 2})[-1], 0)
  assert terms["kd"] == pytest.approx(alike["kd"] / 2, rel=1e-5)
  assert terms["kd_teacher_1"] == pytest.approx(alike["kd_teacher_1"] * 1.5, rel=1e-5)
  logits = planned("kd/combine='logits'", teacher={"count": 2})[-1]
  # The loss is convex in the mean of log-probabilities: one target is no dearer than two.
  one = terms_of(logits, 0)
  assert set(one) == {"labels", "kd"}
  assert 0 < one["kd"] < alike["kd"] + alike["kd_teacher_1"]


@pytest.mark.parametrize(
  ("variant", "changes", "message"),
  [
    ("kd/ramp='linear'", {}, r"^method.ramp_epochs=0.0: expected a number > 0 with ramp='linear'$"),
    (
      "ab/ramp='linear'/ramp_epochs=1",
      {},
      r"^method.ramp='linear': expected 'none' with two_stage=True$",
    ),
    (
      "kd/teacher_weights=(1.0,)",
      {"teacher": {"count": 2}},
      r"^method.teacher_weights=\(1.0,\): expected one for each of 2 teachers$",
    ),
    (
      "at/stage_weights=(1.0,2.0)",
      {},
      r"^method.stage_weights=\(1.0, 2.0\): expected 3, one for each stage$",
    ),
    ("fsp/second_label_weight=0.0", {}, r"^method.second_kd_weight=0.0 and .*one of them > 0$"),
    ("simkd/reused_stages=4", {}, r"^method.reused_stages=4: expected at most 3, as there are "),
    ("nst/stages=('stage1:stage7',)", {}, r"^unknown stage of the teacher 'stage7': did you mean"),
    ("dml/models=('student','resnet9')", {}, r"^unknown model 'resnet9': did you mean"),
    (
      "multi_exit/weight=0.0/label_weight=0.0",
      {},
      r"^method.weight=0.0 and method.label_weight=0.0",
    ),
    (
      "born_again/weight=0.0/label_weight=0.0",
      {},
      r"^method.weight=0.0 and method.label_weight=0.0",
    ),
    (
      "born_again/form='confidence'/weight=0.0",
      {},
      r"^method.weight=0.0: expected a number > 0 with",
    ),
    ("one/from_stage='stage7'", {}, r"^unknown stage of the student 'stage7': did you mean"),
    ("byot/exits=('stage7',)", {}, r"^unknown stage for a bottleneck exit: 'stage7': did you mean"),
    (
      "dml",
      {"student": {"model": "msdnet_small"}},
      r"^student.model='msdnet_small' has 4 exits of its own, and method 'dml' trains a network "
      r"with one; these train several: alone, multi_exit$",
    ),
    (
      "kd",
      {"teacher": {"model": "msdnet_small"}},
      r"^teacher.model='msdnet_small' has 4 exits: a teacher needs to have one$",
    ),
  ],
)
def test_contradictory_fields_are_refused(variant, changes, message):
  with pytest.raises(ConfigError, match=message):
    planned(variant, **changes)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("kd+kd", r"^method.name='kd\+kd': 'kd' is there twice$"),
    ("kd+simkd", r"^method.name='kd\+simkd': 'simkd' cannot be added; these can: kd, dkd"),
    ("kd+att", r"^unknown method 'att': did you mean 'at'"),
  ],
)
def test_methods_that_cannot_be_added_are_refused(name, message):
  with pytest.raises(ConfigError, match=message):
    config.base_config(name)


def test_only_distilled_students_see_unlabelled_images(tiny_models):
  teacher, alone, distilled = planned(
    "kd", data={"per_class": 2, "teacher_per_class": 3, "unlabelled": 6}
  )
  assert len(teacher.examples) == 12 and (teacher.examples.labels >= 0).all()
  assert np.bincount(alone.examples.labels).tolist() == [2] * 4
  assert distilled.examples.labels.tolist()[8:] == [-1] * 6
  assert np.bincount(distilled.examples.labels[:8]).tolist() == [2] * 4
  assert distilled.steps_per_epoch == 2


def test_fewer_test_images_are_the_same_for_every_seed():
  labels = np.arange(40, dtype=np.int32) % 4
  images = np.zeros((40, 8, 8, 1), np.uint8)
  examples = ArrayExamples(images, labels, np.arange(40, dtype=np.int32))
  whole = Dataset("digits", examples, None, examples, 4, (8, 8, 1), (0.5,), (0.3,))
  settings = config.base_config("kd")
  settings.data.test_per_class = 2

  def parts(seed):
    settings.seed = seed
    return build.dataset(settings, lambda *args, **options: whole)

  assert np.bincount(parts(0).test.labels).tolist() == [2] * 4
  assert np.array_equal(parts(0).test.indices, parts(1).test.indices)
  assert parts(0).train is whole.train


def test_a_teacher_takes_pytorchs_weights(tmp_path):
  spec = json.loads((GOLDEN_MODELS / "specs.json").read_text())["resnet8"]["state_dict_spec"]
  file = tmp_path / "resnet8.safetensors"
  state = regenerate(spec, seed=0)
  save_file(state, file)
  labels = np.arange(100, dtype=np.int32)
  examples = ArrayExamples(np.zeros((100, 8, 8, 3), np.uint8), labels, labels)
  data = Dataset("colours", examples, None, examples, 100, (8, 8, 3), (0.5,) * 3, (0.3,) * 3)

  def teacher_of(model, **changes):
    settings = settings_for("kd")
    settings.baseline = False
    settings.teacher.update({"model": model, "weights": str(file), **changes})
    config.check_config(settings)
    return build.phases(settings, data)[0]

  teacher = teacher_of("resnet8")
  assert teacher.epochs == 0
  given = teacher.given["teacher"]["params"]["classifier"]["kernel"]
  np.testing.assert_array_equal(given, state["fc.weight"].T)
  with pytest.raises(
    ConfigError, match=r"^teacher.weights, for teacher.model='resnet14': .*missing"
  ):
    teacher_of("resnet14")
  with pytest.raises(
    ConfigError, match=r"^teacher.bundle='b' and teacher.weights=.*: expected one"
  ):
    teacher_of("resnet8", bundle="b")


def test_a_methods_learning_rate_does_not_change_the_baseline(tiny_models):
  settings = settings_for("simkd")
  settings.method.learning_rate = 0.25
  _, alone, distilled = build.phases(settings, dataset())
  slopes = []
  for stage in (alone, distilled):
    optimizer, weights = stage.optimizer, {"w": np.zeros(1, np.float32)}
    update, _ = optimizer.update({"w": np.ones(1, np.float32)}, optimizer.init(weights), weights)
    slopes.append(-float(update["w"][0]))
  assert slopes == pytest.approx([settings.student.learning_rate, 0.25])


@pytest.mark.parametrize(
  ("changes", "least_work", "count"),
  [({}, 2e9, 1), ({"devices": 2}, 2e9, 2), ({"cpu_devices": 8}, 2e9, 8), ({}, 1e4, 8)],
)
def test_small_steps_run_on_one_device(monkeypatch, tmp_path, changes, least_work, count):
  monkeypatch.setattr(devices, "_WORTH_SHARING", least_work)
  made = []
  monkeypatch.setattr(run, "_train", lambda started: (made.append(started.devices), {}))
  settings = settings_for("alone")
  settings.update(changes)
  options = {"load_data": lambda *args, **options: dataset()}
  run.run(settings, tmp_path / "run", Console(quiet=True), **options)
  assert [len(chosen) for chosen in made] == [count]
