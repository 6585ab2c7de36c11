"""Models with PyTorch's weights, compared with outputs of the published PyTorch code.

`pytest tests/test_golden_models.py --golden DIR` checks another folder of the same format; see
tests/golden/models/README.md.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.adapters import Gate
from jaxkd.evaluate import multiply_adds
from jaxkd.models import Branched, CifarResNet, GatedBranches, MSDNet, from_torch
from jaxkd.models.torch.names import module_path
from tests.torch_weights import digest, msdnet_fields, regenerate

TOLERANCE = 1e-4  # of the largest value of the array
# Name in the published code -> name in jaxkd, if they differ.
NAMES = {
  "MobileNetV2": "mobilenetv2",
  "ResNet50": "cifar_resnet50",
  "ShuffleV1": "shufflenetv1",
  "ShuffleV2": "shufflenetv2",
}
# Files of models of libraries: their constructors have other arguments, a name has one size.
LIBRARIES = ("timm_", "hf_", "torchvision_")
HERE = Path(__file__).parent / "golden" / "models"
SPECS = json.loads((HERE / "specs.json").read_text())
# With sizes of images and taps.
LIBRARY_SPECS = json.loads((HERE / "specs-2.json").read_text())
OURS = ("timm_", "hf_", "torchvision_")
# Of other libraries' models, one of each library is among the tests of `make test`.
OFTEN = ("timm_resnet18", "hf_deit_tiny", "torchvision_mobilenet_v3_small")


def pytest_generate_tests(metafunc):
  if "golden" not in metafunc.fixturenames:
    return
  folder = Path(metafunc.config.getoption("golden") or HERE)
  # --golden may be the losses' folder with the models' folder in it.
  folder = folder / "models" if (folder / "models").is_dir() else folder
  # A folder without files is a failure: an empty list would pass without a test.
  files = sorted(folder.glob("*.npz")) or [folder / "no .npz file"]
  long = {file.stem for file in files if file.stem.startswith(OURS) and file.stem not in OFTEN}
  long |= {"ShuffleV2", "resnet8x4"}  # a large program, and a class that resnet20 is of
  cases = [
    pytest.param(
      file,
      id=file.stem,
      marks=[pytest.mark.long] * (folder == HERE and file.stem in long),
    )
    for file in files
  ]
  metafunc.parametrize("golden", cases)


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


@dataclasses.dataclass(frozen=True)
class Run:
  """Results of jaxkd for one file: phase -> the file's name of an array -> the array."""

  module: object
  variables: dict
  phases: dict
  batch_stats: dict


def build(name, args, num_classes):
  """The module for a reference's name and constructor arguments."""
  # Files of several names hold sizes of one class.
  if name.startswith("msdnet"):
    return MSDNet(num_classes, **msdnet_fields(args))
  if name.startswith("one_resnet"):
    network = CifarResNet((args["depth"] - 2) // 6, (16, 16, 32, 64), num_classes)
    return GatedBranches(Branched(network, branches=3), Gate(3))
  ours = NAMES.get(name, name)
  if ours not in models.names():
    pytest.fail(f"jaxkd has no model {ours!r}; it has {', '.join(models.names())}")
  if name.startswith(LIBRARIES):
    return models.create(ours, num_classes=num_classes)
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
  variables = from_torch(state, module, image_shape=reference["x"].shape[1:])

  def of_interest(part, method):
    return method == "run_block" or isinstance(part, Branched | Gate)

  @jax.jit
  def both(variables, images):
    def apply(**options):
      captured = {"capture_intermediates": of_interest}
      output, updated = module.apply(variables, images, **options, **captured)
      return arrays(reference, module, output, updated.get("intermediates")), updated

    evaluated, _ = apply(mutable=["intermediates"])
    trained, updated = apply(train=True, mutable=["intermediates", "batch_stats"])
    return {"eval": evaluated, "train": trained}, updated.get("batch_stats", {})

  phases, batch_stats = both(variables, reference["x"])
  return Run(module, variables, phases, batch_stats)


def arrays(reference, module, output, intermediates):
  """The arrays that the module computed, by their names in the files."""
  if isinstance(module, GatedBranches):
    first = 0 if "eval/f3_0.stats" in reference else 1
    return arrays_of_branches(module, output, intermediates, first)
  if isinstance(module, MSDNet):
    return arrays_of_exits(output, intermediates)
  if "taps" in reference:
    return arrays_of_taps(json.loads(str(reference["taps"])), output)
  number = {stage: i for i, stage in enumerate(module.stages)}
  return (
    {"logits": output.logits}
    | {f"f{number[stage]}": x for stage, x in output.features.items()}
    | {f"pre/f{number[stage]}": x for stage, x in output.preactivations.items()}
  )


def arrays_of_taps(taps, output):
  """The arrays of a library's model, whose file names our stage for each tap."""
  heads = {name: x for name, x in output.features.items() if name.startswith("logits_")}
  named = {stage: tap for tap, stage, *_ in taps}
  return (
    {"logits": output.logits}
    | heads
    | {tap: output.features[stage] for stage, tap in named.items()}
    | {f"pre/{named[stage]}": x for stage, x in output.preactivations.items()}
  )


def arrays_of_exits(outputs, intermediates):
  """The arrays of MSDNet; the tap of an exit is the map that it reads."""
  assert not any(exit_.preactivations for exit_ in outputs)
  carries = [carry for carry, _ in intermediates["run_block"]]
  return (
    {"logits": jnp.stack([exit_.logits for exit_ in outputs])}
    | {f"f{i}": exit_.features["coarsest"] for i, exit_ in enumerate(outputs)}
    | {f"scales/b{b}_s{s}": x for b, maps in enumerate(carries) for s, x in enumerate(maps)}
  )


def arrays_of_branches(module, output, intermediates, first):
  """The arrays of ONE: taps of the trunk, and of the branches, numbered from `first`."""
  (branches,), (gate,) = (intermediates[part]["__call__"] for part in ("branched", "gate"))
  found = {
    "logits": jnp.stack([branch.logits for branch in branches]),
    "logits_ens": output.logits,
    "gate": gate,
  }
  stages = module.branched.stages
  last = stages.index(module.branched.from_stage)
  for k, branch in enumerate(branches, first):
    for prefix, values in (("", branch.features), ("pre/", branch.preactivations)):
      for stage, x in values.items():
        i = stages.index(stage)
        found[f"{prefix}f{i}" if i <= last else f"{prefix}f{i}_{k}"] = x
  return found


def check(reference, key, array):
  """Compare one array with the stored shape, summary, and values or a stride of them.

  Returns the largest difference relative to the largest value; 0 if only a summary is stored.
  """
  array = np.asarray(array, np.float64)
  assert list(array.shape) == reference[f"{key}.shape"].tolist(), key
  stats = reference[f"{key}.stats"]
  scale = stats[3]
  tolerance = tolerance_of(reference, key)
  found = [array.mean(), array.std(), np.linalg.norm(array), np.abs(array).max()]
  allowed = tolerance * np.array([scale, scale, stats[2], scale])
  np.testing.assert_array_less(np.abs(found - stats), allowed, err_msg=f"{key}.stats")
  if key in reference:
    expected = reference[key]
  elif f"{key}.slice" in reference:
    expected, array = reference[f"{key}.slice"], array.reshape(-1)[:: int(reference[f"{key}.step"])]
  else:
    return 0.0
  np.testing.assert_allclose(array, expected, rtol=0, atol=tolerance * scale, err_msg=key)
  return float(np.abs(array - expected).max() / scale)


def tolerance_of(reference, key):
  """TOLERANCE, or ten times what the published code in float32 is away from float64, if larger."""
  if "taps" not in reference:
    return TOLERANCE
  return max(TOLERANCE, 10 * json.loads(str(reference["f32_relerr"])).get(key, 0.0))


def stored(reference, phase):
  """The names of the arrays that a file has for a phase."""
  summaries = (key for key in reference if key.startswith(f"{phase}/") and key.endswith(".stats"))
  return {key.removeprefix(f"{phase}/").removesuffix(".stats") for key in summaries}


@pytest.mark.parametrize("phase", ["eval", "train"])
class TestForward:
  def compare(self, golden, phase, names, record_property):
    reference, ours = load(golden), run(golden).phases[phase]
    column = f"{phase} {'logits' if 'logits' in names else 'taps'}"
    worst = np.inf
    try:
      worst = max((check(reference, f"{phase}/{name}", ours[name]) for name in names), default=0.0)
    finally:
      # For the table at the end of the run, see conftest.py.
      record_property("model parity", (str(reference["model"]), column, float(worst)))

  def test_logits_equal_the_published_code(self, golden, reference, phase, record_property):
    # The logits of an ensemble and its gate are compared as well.
    also = {"logits_ens", "gate", "logits_cls", "logits_dist"}
    names = stored(reference, phase) & {"logits", *also}
    assert "logits" in names
    self.compare(golden, phase, names, record_property)

  def test_features_equal_the_published_code(self, golden, reference, phase, record_property):
    names = {name for name in stored(reference, phase) if name.startswith("f")}
    if phase == "train" and not has_batch_norm(reference):
      assert not names  # they are those of "eval"
      return
    ours = {name for name in run(golden).phases[phase] if name.startswith("f")}
    # Taps are numbered shallow to deep, as stages and exits. Files of ONE's network may lack stem
    # and pooled.
    lacking = {name for name in ours - names if name[:2] not in ("f1", "f2", "f3")}
    assert names == ours or (names == ours - lacking and "logits_ens" in stored(reference, phase))
    self.compare(golden, phase, names, record_property)

  def test_preactivations_equal_the_published_code(self, golden, reference, phase, record_property):
    # Preactivations that equal the tap are not stored.
    names = {name for name in stored(reference, phase) if name.startswith("pre/")}
    self.compare(golden, phase, names, record_property)

  def test_maps_of_every_scale_equal_the_published_code(self, golden, reference, phase):
    ours = run(golden).phases[phase]
    names = {name for name in stored(reference, phase) if name.startswith("scales/")}
    assert names == {name for name in ours if name.startswith("scales/")}
    for name in names:
      check(reference, f"{phase}/{name}", ours[name])

  def test_every_stored_array_is_computed(self, golden, reference, phase):
    assert stored(reference, phase) <= run(golden).phases[phase].keys()


def has_batch_norm(reference):
  return bool(json.loads(str(reference["train/bn_names"])))


def test_batch_statistics_after_one_step_equal_the_published_code(golden, reference):
  stats = run(golden).batch_stats

  def layer(name):
    tree = stats
    for part in module_path(name, run(golden).module.torch_names).split("/"):
      tree = tree[part]
    return np.asarray(tree["mean"], np.float64), np.asarray(tree["var"], np.float64)

  def close(found, expected, scale, name):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=name)

  names = json.loads(str(reference["train/bn_names"]))
  assert len(names) == len(jax.tree.leaves(stats)) // 2
  tolerance = tolerance_of(reference, "train/running")
  for i, name in enumerate(names):
    mean, var = layer(name)
    close(mean.sum(), reference["train/bn_mean_sum"][i], np.abs(mean).sum(), name)
    # Flax stores the biased variance, PyTorch the unbiased one.
    close(var.sum(), reference["train/bn_var_biased_sum"][i], var.sum(), name)
  picked = json.loads(str(reference["train/bn_picked"]))
  assert bool(picked) == bool(names)
  for name in picked:
    for found, leaf in zip(layer(name), ("running_mean", "running_var_biased"), strict=True):
      expected = reference[f"train/bn/{name}/{leaf}"]
      close(found, expected, np.abs(expected).max(), f"{name} {leaf}")


def test_initial_variables_have_the_published_names_shapes_and_count(golden, reference):
  result = run(golden)
  fresh = jax.eval_shape(result.module.init, jax.random.key(0), reference["x"])
  assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, result.variables)
  count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(fresh["params"]))
  assert count == int(reference["n_params"])


def test_multiply_adds_of_one_image_equal_the_published_code(golden, reference):
  result = run(golden)
  found = multiply_adds(result.module.apply, result.variables, reference["x"][:1])
  assert found == int(reference["macs"])


@pytest.mark.parametrize("name", SPECS)
def test_model_without_stored_values_has_the_published_names_shapes_and_costs(name):
  spec = SPECS[name]
  # The size of the last weight is the number of classes; not all constructors have it as argument.
  module = build(name, spec["args"], spec["state_dict_spec"][-1][1][0])
  state = {entry: np.broadcast_to(np.float32(0), shape) for entry, shape in spec["state_dict_spec"]}
  variables = from_torch(state, module)  # refuses other names and shapes
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) == spec["n_params"]
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  assert multiply_adds(module.apply, variables, images) == spec["macs"]


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in LIBRARY_SPECS if name.startswith(OURS)])
def test_library_model_without_stored_values_has_the_published_shapes_and_costs(name):
  spec = LIBRARY_SPECS[name]
  classes = spec["num_classes"]
  module = build(name, spec["args"], classes)
  state = {entry: np.broadcast_to(np.float32(0), shape) for entry, shape in spec["state_dict_spec"]}
  side = spec["image_size"]
  variables = from_torch(state, module, image_shape=(side, side, 3))  # refuses other names, shapes
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) == spec["n_params"]
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  output = jax.eval_shape(module.apply, variables, images)
  found = {tap: list(x.shape[1:]) for tap, x in arrays_of_taps(spec["taps"], output).items()}
  assert found.items() >= spec["tap_shapes"].items()
  assert multiply_adds(module.apply, variables, images) == spec["macs"]
  published = spec["published"]
  module = build(name, spec["args"], published["num_classes"])
  side = published["image_size"]
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) == published["n_params"]
  assert multiply_adds(module.apply, variables, images) == published["macs"]


def test_check_detects_a_wrong_value():
  reference = load(HERE / "resnet8x4.npz")
  logits = reference["eval/logits"]
  check(reference, "eval/logits", logits)
  wrong = logits.copy()
  wrong[0, 0] += 2 * TOLERANCE * np.abs(logits).max()
  with pytest.raises(AssertionError, match="eval/logits"):
    check(reference, "eval/logits", wrong)


def test_unknown_model_in_a_file_is_a_failure(tmp_path):
  file = tmp_path / "vgg7.npz"
  np.savez(file, **{**load(HERE / "resnet8x4.npz"), "model": np.array("vgg7")})
  with pytest.raises(pytest.fail.Exception, match="no model 'vgg7'"):
    run(file)
