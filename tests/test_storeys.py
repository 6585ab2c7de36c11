"""The whole house: what every storey exports is documented, and every method stands on them."""

import importlib
import inspect

import jax
import numpy as np
import pytest

from jaxkd import plan, recipes
from jaxkd.data import ArrayExamples, Dataset
from jaxkd.data.pipeline import training_batches
from jaxkd.train import check_stages
from tests.schemes.one_step import assert_all_moved, assert_same, start, updated

PACKAGES = ["connectors", "data", "evaluate", "losses", "models", "report", "schemes", "train"]
DISTILLING = sorted(name for name, method in recipes.METHODS.items() if method.scheme)
each_package = pytest.mark.parametrize("package", PACKAGES)


def exports(package):
  module = importlib.import_module(f"jaxkd.{package}")
  return {name: getattr(module, name) for name in module.__all__}


@each_package
def test_everything_exported_is_documented(package):
  undocumented = []
  for name, value in exports(package).items():
    if not (inspect.isclass(value) or inspect.isfunction(value)):
      continue
    documented = [(name, value)]
    if inspect.isclass(value):
      # Of a class, the public methods that it defines itself.
      own = ((key, member) for key, member in vars(value).items() if not key.startswith("_"))
      documented += [(f"{name}.{key}", m) for key, m in own if inspect.isfunction(m)]
    # A dataclass without a docstring gets its signature for one.
    undocumented += [
      label for label, item in documented if not item.__doc__ or item.__doc__.startswith(f"{name}(")
    ]
  # linen defines these.
  assert [label for label in undocumented if not label.endswith((".setup", ".copy"))] == []


@each_package
def test_exports_are_sorted_and_complete(package):
  module = importlib.import_module(f"jaxkd.{package}")
  assert list(module.__all__) == sorted(set(module.__all__), key=lambda n: (n.upper() != n, n))
  public = {
    name
    for name, value in vars(module).items()
    if (inspect.isclass(value) or inspect.isfunction(value)) and not name.startswith("_")
  }
  assert public <= set(module.__all__)


def dataset():
  rng = np.random.default_rng(0)

  def examples(count):
    labels = np.arange(count, dtype=np.int32) % 4
    images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return ArrayExamples(images, labels, np.arange(count, dtype=np.int32))

  return Dataset("drawn", examples(16), examples(8), examples(8), 4, (8, 8, 1), (0.5,), (0.3,))


def settings_for(method):
  settings = recipes.base_config(method)
  settings.batch_size = 8
  settings.sync_batch_norm = False  # there is no mapped step here
  settings.data.crop = 1
  settings.teacher.model = "resnet8_w8"
  settings.student.model = "resnet8_w4"
  settings.student.epochs = 1
  return settings


@pytest.mark.parametrize("method", sorted(recipes.METHODS))
def test_every_method_names_its_stages(method):
  stages = plan.stages(settings_for(method), dataset())
  check_stages(stages)
  expected = {"teacher": ["teacher"], "alone": ["alone"]}
  names = [stage.name for stage in stages]
  assert names == expected.get(method, ["teacher", "alone", "distilled"])
  settings = settings_for(method)
  settings.baseline = False
  without = [stage.name for stage in plan.stages(settings, dataset())]
  assert without == expected.get(method, ["teacher", "distilled"])


@pytest.mark.parametrize("method", DISTILLING)
def test_every_methods_student_learns_in_its_recipes_step(method):
  stage = plan.stages(settings_for(method), dataset())[-1]
  assert stage.inherit == {"teacher": "teacher/teacher"}
  stored = next(training_batches(stage.examples, batch_size=8, seed=0))
  before = start(stage.scheme, data=stage.prepare_evaluation(stored))
  after = updated(
    stage.scheme, before, stored, optimizer=stage.optimizer, prepare=stage.prepare_training
  )
  assert_same(before["teacher"], after["teacher"])
  assert "student" in stage.scheme.learners
  for learner in stage.scheme.learners:
    assert_all_moved(before[learner]["batch_stats"], after[learner]["batch_stats"])
  assert_all_moved(*(tree["student"]["params"]["stem_conv"] for tree in (before, after)))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
  assert set(stage.scheme.export(after)) == {"student"}


def test_a_methods_own_learning_rate_leaves_the_student_alone_as_it_was():
  settings = settings_for("simkd")
  settings.method.learning_rate = 0.25
  _, alone, distilled = plan.stages(settings, dataset())
  slopes = []
  for stage in (alone, distilled):
    optimizer, weights = stage.optimizer, {"w": np.zeros(1, np.float32)}
    update, _ = optimizer.update({"w": np.ones(1, np.float32)}, optimizer.init(weights), weights)
    slopes.append(-float(update["w"][0]))
  assert slopes == pytest.approx([settings.student.learning_rate, 0.25])
