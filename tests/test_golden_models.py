"""Models with PyTorch's weights against what the published PyTorch code computes.

`pytest tests/test_golden_models.py --golden DIR` checks another folder of the same format; see
tests/golden/models/README.md.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.evaluate import multiply_adds
from jaxkd.models import MSDNet
from tests.torch_weights import digest, module_path, msdnet_fields, regenerate, to_flax

TOLERANCE = 1e-4  # of the largest value of the array
# What the published code calls models of ours, where we call them otherwise.
NAMES = {
  "MobileNetV2": "mobilenetv2",
  "ResNet50": "cifar_resnet50",
  "ShuffleV1": "shufflenetv1",
  "ShuffleV2": "shufflenetv2",
}
HERE = Path(__file__).parent / "golden" / "models"


def pytest_generate_tests(metafunc):
  if "golden" not in metafunc.fixturenames:
    return
  folder = Path(metafunc.config.getoption("golden") or HERE)
  # One --golden can serve the losses' folder and the models' folder in it.
  folder = folder / "models" if (folder / "models").is_dir() else folder
  # A folder without files is a failure, too: an empty list would pass unseen.
  files = sorted(folder.glob("*.npz")) or [folder / "no .npz file"]
  metafunc.parametrize("golden", files, ids=[file.stem for file in files])


@pytest.fixture
def reference(golden):
  return load(golden)


@cache
def load(path):
  assert path.is_file(), f"nothing to check: {path}"
  with np.load(path, allow_pickle=False) as file:
    reference = dict(file)
  assert "state_dict_spec" in reference, f"{path.name} is not a golden model"
  return reference


class Phase(NamedTuple):
  """What jaxkd computes in one mode."""

  logits: jax.Array
  taps: list  # shallow to deep
  preactivations: dict  # by the number of the tap
  scales: dict  # MSDNet's maps by block and scale


@dataclasses.dataclass(frozen=True)
class Run:
  """What jaxkd computes for one file."""

  module: object
  variables: dict
  phases: dict
  batch_stats: dict


def build(name, args, num_classes):
  """The module for a reference's name and constructor arguments."""
  # One class, of which files of other names hold other sizes.
  if name.startswith("msdnet"):
    return MSDNet(num_classes, **msdnet_fields(args))
  ours = NAMES.get(name, name)
  if ours not in models.names():
    pytest.fail(f"jaxkd has no model {ours!r}; it has {', '.join(models.names())}")
  return models.create(ours, **args)


@cache
def run(path):
  reference = load(path)
  args = json.loads(str(reference["args"]))
  module = build(str(reference["model"]), args, int(reference["num_classes"]))
  spec = json.loads(str(reference["state_dict_spec"]))
  state = regenerate(spec, int(reference["seed"]))
  floats = [entry for entry, _ in spec if not entry.endswith("num_batches_tracked")]
  expected = dict(zip((entry for entry, _ in spec), reference["sd_sum"], strict=True))
  for entry in floats:
    np.testing.assert_allclose(state[entry].sum(dtype=np.float64), expected[entry], atol=1e-9)
  assert digest(state) == str(reference["sd_sha256"])
  variables = to_flax(state, module)

  @jax.jit
  def both(variables, images):
    def apply(**options):
      captured = {"capture_intermediates": lambda _, method: method == "run_block"}
      output, updated = module.apply(variables, images, **options, **captured)
      return parts(output, updated), updated

    evaluated, _ = apply(mutable=["intermediates"])
    trained, updated = apply(train=True, mutable=["intermediates", "batch_stats"])
    return {"eval": evaluated, "train": trained}, updated["batch_stats"]

  def parts(output, updated):
    if not isinstance(output, tuple):
      taps = [output.features[stage] for stage in module.stages]
      pre = {module.stages.index(stage): x for stage, x in output.preactivations.items()}
      return Phase(output.logits, taps, pre, {})
    # Of several exits: what each of them reads is the tap.
    taps = [exit_.features["coarsest"] for exit_ in output]
    assert not any(exit_.preactivations for exit_ in output)
    carries = [carry for carry, _ in updated["intermediates"]["run_block"]]
    scales = {f"b{b}_s{s}": x for b, maps in enumerate(carries) for s, x in enumerate(maps)}
    return Phase(jnp.stack([exit_.logits for exit_ in output]), taps, {}, scales)

  return Run(module, variables, *both(variables, reference["x"]))


def check(reference, key, array):
  """Compares one array with its shape, its summary, and its values or a stride of them."""
  scale = check_summary(reference, key, array)
  array = np.asarray(array, np.float64)
  if key in reference:
    expected = reference[key]
  else:
    expected, array = reference[f"{key}.slice"], array.reshape(-1)[:: int(reference[f"{key}.step"])]
  np.testing.assert_allclose(array, expected, rtol=0, atol=TOLERANCE * scale, err_msg=key)


def check_summary(reference, key, array):
  """Compares one array with its shape and its summary, and returns its largest magnitude."""
  array = np.asarray(array, np.float64)
  assert list(array.shape) == reference[f"{key}.shape"].tolist(), key
  stats = reference[f"{key}.stats"]
  scale = stats[3]
  found = [array.mean(), array.std(), np.linalg.norm(array), np.abs(array).max()]
  allowed = TOLERANCE * np.array([scale, scale, stats[2], scale])
  np.testing.assert_array_less(np.abs(found - stats), allowed, err_msg=f"{key}.stats")
  return scale


def keys(reference, phase, part):
  prefix = f"{phase}/{part}"
  return sorted({key.split(".")[0] for key in reference if key.startswith(prefix)})


@pytest.mark.parametrize("phase", ["eval", "train"])
class TestForward:
  def test_logits_are_those_of_the_published_code(self, golden, reference, phase):
    check(reference, f"{phase}/logits", run(golden).phases[phase].logits)

  def test_features_are_those_of_the_published_code(self, golden, reference, phase):
    taps = run(golden).phases[phase].taps
    # Taps are numbered shallow to deep, and so are our stages and exits.
    assert keys(reference, phase, "f") == [f"{phase}/f{i}" for i in range(len(taps))]
    for i, tap in enumerate(taps):
      check(reference, f"{phase}/f{i}", tap)

  def test_preactivations_are_those_of_the_published_code(self, golden, reference, phase):
    ours, stored = run(golden).phases[phase].preactivations, keys(reference, phase, "pre/f")
    # What is the same as the tap is not stored.
    assert bool(ours) == bool(stored or json.loads(str(reference["pre_same_as_post"])))
    for key in stored:
      check(reference, key, ours[int(key.rsplit("f", 1)[1])])

  def test_maps_of_every_scale_are_those_of_the_published_code(self, golden, reference, phase):
    scales = run(golden).phases[phase].scales
    stored = keys(reference, phase, "scales/")
    assert stored == sorted(f"{phase}/scales/{name}" for name in scales)
    for name, array in scales.items():
      check_summary(reference, f"{phase}/scales/{name}", array)


def test_one_training_step_moves_batch_statistics_as_published(golden, reference):
  stats = run(golden).batch_stats

  def layer(name):
    tree = stats
    for part in module_path(name, run(golden).module).split("/"):
      tree = tree[part]
    return np.asarray(tree["mean"], np.float64), np.asarray(tree["var"], np.float64)

  def close(found, expected, scale, name):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale, err_msg=name)

  names = json.loads(str(reference["train/bn_names"]))
  assert len(names) == len(jax.tree.leaves(stats)) // 2
  for i, name in enumerate(names):
    mean, var = layer(name)
    close(mean.sum(), reference["train/bn_mean_sum"][i], np.abs(mean).sum(), name)
    # Flax keeps the biased variance, torch the unbiased one.
    close(var.sum(), reference["train/bn_var_biased_sum"][i], var.sum(), name)
  picked = json.loads(str(reference["train/bn_picked"]))
  assert picked
  for name in picked:
    for found, leaf in zip(layer(name), ("running_mean", "running_var_biased"), strict=True):
      expected = reference[f"train/bn/{name}/{leaf}"]
      close(found, expected, np.abs(expected).max(), f"{name} {leaf}")


def test_fresh_variables_have_the_published_names_shapes_and_count(golden, reference):
  result = run(golden)
  fresh = jax.eval_shape(result.module.init, jax.random.key(0), reference["x"])
  assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, result.variables)
  count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(fresh["params"]))
  assert count == int(reference["n_params"])


def test_one_image_costs_the_published_multiplications(golden, reference):
  result = run(golden)
  found = multiply_adds(result.module.apply, result.variables, reference["x"][:1])
  assert found == int(reference["macs"])


def test_the_check_notices_a_wrong_value():
  reference = load(HERE / "resnet8x4.npz")
  logits = reference["eval/logits"]
  check(reference, "eval/logits", logits)
  wrong = logits.copy()
  wrong[0, 0] += 2 * TOLERANCE * np.abs(logits).max()
  with pytest.raises(AssertionError, match="eval/logits"):
    check(reference, "eval/logits", wrong)


def test_a_model_that_jaxkd_does_not_have_is_a_failure(tmp_path):
  file = tmp_path / "vgg7.npz"
  np.savez(file, **{**load(HERE / "resnet8x4.npz"), "model": np.array("vgg7")})
  with pytest.raises(pytest.fail.Exception, match="no model 'vgg7'"):
    run(file)
