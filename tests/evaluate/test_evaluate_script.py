"""experiments/evaluate.py on bundles of untrained networks."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, models
from jaxkd.commands import evaluate
from jaxkd.errors import ConfigError
from jaxkd.export import scores
from jaxkd.export.bundles import save_bundle
from jaxkd.types import Network, Preprocessing

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def script():
  def command(**given):
    evaluate.FLAGS.unparse_flags()
    arguments = [f"--{name}={value}" for name, value in given.items()]
    evaluate.main(evaluate.FLAGS(["evaluate.py", *arguments]))

  return types.SimpleNamespace(scored=evaluate.scored, command=command)


def dataset(name="digits", shape=SHAPE, num_classes=3):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (21, *shape), dtype=np.uint8)
  labels = rng.integers(0, num_classes, 21).astype(np.int32)
  examples = data.ArrayExamples(pixels, labels, np.arange(21, dtype=np.int32))
  mean, std = (0.3,) * shape[-1], (0.4,) * shape[-1]
  return data.Dataset(name, examples, None, examples, num_classes, shape, mean, std)


def network(shape=SHAPE, images=None):
  module = models.MLP((4,), num_classes=3)
  variables = module.init(jax.random.key(0), jnp.zeros((1, *shape)))
  return Network(module, jax.device_get(variables), images)


def expected(given, pixels, labels):
  output = given.module.apply(given.variables, pixels, train=False)
  log_probabilities = jax.nn.log_softmax(output.logits)
  correct = (output.logits.argmax(-1) == labels).mean()
  return float(correct), -float(log_probabilities[np.arange(len(labels)), labels].mean())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run's directory with bundles of two predictors."""
  workdir = tmp_path_factory.mktemp("run")
  description = {"image_shape": list(SHAPE), "mean": [0.3], "std": [0.4], "data": "digits"}
  for name in ("alone/student", "distilled/student"):
    save_bundle(workdir / "bundles" / name, network(), description)
  return workdir


def test_every_predictor_of_a_run_is_scored_on_its_own_data(script, run, tmp_path, monkeypatch):
  asked = []

  def load(name, **options):
    asked.append(name)
    return dataset(name)

  monkeypatch.setattr(data, "load", load)
  script.command(bundle=run, output=tmp_path / "scores.json")
  assert asked == ["digits"]
  written = json.loads((tmp_path / "scores.json").read_text())
  assert list(written) == ["alone/student", "distilled/student"]
  examples = dataset().test
  pixels = (examples.fetch(np.arange(21)) / 255 - 0.3) / 0.4
  accuracy, nats = expected(network(), pixels, examples.labels)
  found = written["alone/student"]
  assert found["accuracy"] == pytest.approx(accuracy)
  assert found["cross_entropy"] == pytest.approx(nats, rel=1e-5)
  assert 0 <= found["calibration_error"] <= 1


def test_the_last_batch_may_be_smaller(script):
  whole = scores.score_network(network(), dataset(), batch_size=21)
  parts = scores.score_network(network(), dataset(), batch_size=8)
  for name in scores.METRICS:
    assert parts[name] == pytest.approx(whole[name], abs=1e-5)


def test_images_are_converted_to_those_that_the_network_was_trained_on(script):
  given = network(images=Preprocessing((0.1,), (0.2,), SHAPE[:2]))
  examples = dataset().test
  pixels = (examples.fetch(np.arange(21)) / 255 - 0.1) / 0.2
  found = scores.score_network(given, dataset())
  assert found["cross_entropy"] == pytest.approx(
    expected(given, pixels, examples.labels)[1], rel=1e-4
  )


def test_a_run_that_saw_the_centre_of_images_is_scored_on_the_centre(script, run, monkeypatch):
  monkeypatch.setattr(data, "load", lambda name, **_: dataset(name, shape=(12, 12, 1)))
  found = script.scored(run / "bundles/alone/student", None, None, 256)
  wide = dataset(shape=(12, 12, 1))
  pixels = (wide.test.fetch(np.arange(21)) / 255 - 0.3) / 0.4
  nats = expected(network(), pixels[:, 2:10, 2:10], wide.test.labels)[1]
  assert found["student"]["cross_entropy"] == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_classes": 4}, "predicts 3 classes, data set 'digits' has 4"),
    ({"shape": (8, 8, 2)}, "images of 2 channels cannot be converted"),
  ],
)
def test_a_data_set_that_does_not_fit_is_named(change, message):
  given = network(images=Preprocessing((0.1,), (0.2,), SHAPE[:2]))
  with pytest.raises(ConfigError, match=message):
    scores.score_network(given, dataset(**change))


def test_labels_of_several_classes_and_other_inputs_are_refused(script, run, monkeypatch):
  rows = np.zeros((4, *SHAPE), np.float32)
  several = data.MultiLabelExamples(rows, np.eye(4, 3))
  with pytest.raises(ConfigError, match=r"labels \(4, 3\) are multi-hot: expected one class"):
    scores.score_network(network(), data.Dataset("tags", several, None, several, 3))
  plain = data.TreeExamples(rows, np.zeros(4, int))
  monkeypatch.setattr(data, "load", lambda *_, **__: data.Dataset("rows", plain, None, plain, 3))
  with pytest.raises(ConfigError, match="takes images, and data set 'rows' has no images"):
    script.scored(run / "bundles/alone/student", None, None, 256)


def test_a_missing_split_and_a_bundle_without_data_are_named(script, tmp_path):
  with pytest.raises(ConfigError, match="split='validation': data set 'digits' has no such"):
    scores.score_network(network(), dataset(), split="validation")
  save_bundle(tmp_path / "bundle", network(), {"image_shape": list(SHAPE)})
  with pytest.raises(ConfigError, match="names no data set: --data must be given"):
    script.scored(tmp_path / "bundle", None, None, 256)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ConfigError, match=r"no model\.json there, so neither a bundle nor a run"):
    script.scored(tmp_path / "empty", None, None, 256)
