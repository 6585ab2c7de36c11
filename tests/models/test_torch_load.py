from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd.adapters import Gate
from jaxkd.errors import ConfigError
from jaxkd.models import Branched, CifarResNet, GatedBranches, create, from_torch
from jaxkd.models.torch.names import module_path

FILES = Path(__file__).parent / "torch_files"
SHAPES = {
  "conv.weight": (4, 1, 3, 5),  # outputs, inputs / groups, height, width
  "layer0.bn.weight": (4,),
  "layer0.bn.bias": (4,),
  "layer0.bn.running_mean": (4,),
  "layer0.bn.running_var": (4,),
  "fc.weight": (3, 4),
  "fc.bias": (3,),
}


class Small(nn.Module):
  """A grouped convolution, a norm, and a classifier."""

  classes: int = 3
  width: int = 4
  torch_names = (
    (r"conv", "stem_conv"),
    (r"layer(\d)\.bn", lambda match: f"stage{int(match[1]) + 1}/bn"),
    (r"fc|linear", "classifier"),
  )

  @nn.compact
  def __call__(self, images, train=False):
    groups = images.shape[-1]
    kernel = {"feature_group_count": groups, "use_bias": False, "name": "stem_conv"}
    x = nn.Conv(self.width, (3, 5), **kernel)(images)
    x = Norm(name="stage1")(x, train)
    return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


class Norm(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.BatchNorm(use_running_average=not train, name="bn")(x)


class Tensor:
  """A stub of a PyTorch tensor in bfloat16, which numpy does not have."""

  def __init__(self, values, on="parameter"):
    self.values, self.on = values, on
    self.shape, self.ndim, self.dtype = values.shape, values.ndim, "torch.bfloat16"

  def detach(self):
    return Tensor(self.values, "gpu")

  def cpu(self):
    assert self.on == "gpu"
    return Tensor(self.values, "cpu")

  def float(self):
    return Tensor(self.values, f"{self.on} float")

  def numpy(self):
    assert self.on == "cpu float"
    return self.values


@pytest.fixture
def state():
  rng = np.random.default_rng(0)
  arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
  return {**arrays, "layer0.bn.num_batches_tracked": np.int64(7)}


def converted(source, model=None, image_shape=(8, 8, 2)):
  return from_torch(source, model or Small(), image_shape=image_shape)


def test_every_kind_of_value_is_converted(state):
  variables = converted(state)
  params, statistics = variables["params"], variables["batch_stats"]
  assert set(variables) == {"params", "batch_stats"}
  kernel = params["stem_conv"]["kernel"]
  assert kernel.shape == (3, 5, 1, 4)
  for o in range(4):
    np.testing.assert_array_equal(kernel[..., 0, o], state["conv.weight"][o, 0])
  np.testing.assert_array_equal(params["classifier"]["kernel"], state["fc.weight"].T)
  np.testing.assert_array_equal(params["classifier"]["bias"], state["fc.bias"])
  norm, moments = params["stage1"]["bn"], statistics["stage1"]["bn"]
  for ours, leaf in (("scale", "weight"), ("bias", "bias")):
    np.testing.assert_array_equal(norm[ours], state[f"layer0.bn.{leaf}"])
  for ours, leaf in (("mean", "running_mean"), ("var", "running_var")):
    np.testing.assert_array_equal(moments[ours], state[f"layer0.bn.{leaf}"])
  Small().apply(variables, jnp.ones((2, 8, 8, 2)))


@pytest.mark.parametrize(
  "convert",
  [
    np.asarray,
    jnp.asarray,
    lambda value: np.asarray(value, np.float64),
    lambda value: Tensor(np.asarray(value)),
  ],
  ids=["numpy", "jax", "float64", "torch"],
)
def test_arrays_of_any_library_become_float32_copies(state, convert):
  source = {name: convert(value) for name, value in state.items() if "tracked" not in name}
  variables = converted(source)
  bias, wanted = variables["params"]["classifier"]["bias"], state["fc.bias"].copy()
  assert type(bias) is np.ndarray and bias.dtype == np.float32 and bias.flags.writeable
  bias += 1
  np.testing.assert_array_equal(bias, wanted + 1)
  np.testing.assert_array_equal(state["fc.bias"], wanted)


def test_half_precision_is_widened(state):
  state["fc.bias"] = state["fc.bias"].astype(jnp.bfloat16)
  bias = converted(state)["params"]["classifier"]["bias"]
  assert bias.dtype == np.float32
  np.testing.assert_array_equal(bias, state["fc.bias"].astype(np.float32))


@pytest.mark.parametrize("key", ["model", "state_dict", "net", "model_state_dict"])
def test_weights_may_be_an_entry_of_a_checkpoint(state, key):
  checkpoint = {"epoch": 3, "best_acc": np.float32(0.5), "optimizer": {"state": {}}}
  parallel = OrderedDict((f"module.{name}", value) for name, value in state.items())
  variables = converted({**checkpoint, key: parallel})
  np.testing.assert_array_equal(variables["params"]["classifier"]["bias"], state["fc.bias"])


def test_prefix_of_only_some_names_is_not_dropped(state):
  state["module.conv.weight"] = state.pop("conv.weight")
  with pytest.raises(ConfigError, match=r"1 unknown \(module\.conv\.weight\); 1 missing"):
    converted(state)


def test_several_state_dicts_raise_config_error_with_their_names(state):
  with pytest.raises(ConfigError, match=r"several state dicts, model, net: .*read_torch_file"):
    converted({"net": state, "model": state})


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ({}, "it has nothing"),
    ({"ema": {"a": np.ones(3)}, "epoch": 1}, "it has 'ema', 'epoch'"),
    ({"model": {}}, "it has 'model'"),
    ({3: np.ones(3)}, "it has 3"),
  ],
)
def test_source_without_a_state_dict_raises_config_error_with_its_keys(source, message):
  with pytest.raises(ConfigError, match=f"the given state dict: no mapping .*{message}"):
    converted(source)


def test_one_error_lists_all_mismatches(state):
  state["fc.weight"] = np.ones((4, 4), np.float32)
  state["layer1.bn.weight"] = state["head.bias"] = np.ones(4, np.float32)
  state["conv.weight"] = np.ones((4, 1, 3, 5), np.int8)
  del state["layer0.bn.running_var"]
  with pytest.raises(ConfigError) as error:
    converted(state)
  assert str(error.value) == (
    "the given state dict: not the weights of this Small: "
    "2 unknown (layer1.bn.weight, head.bias); "
    "1 missing (batch_stats/stage1/bn/var); "
    "2 of another shape or kind "
    "(params/stem_conv/kernel: int8 from conv.weight, expected (3, 5, 1, 4), "
    "params/classifier/kernel: (4, 4) from fc.weight, expected (4, 3))"
  )


def test_long_lists_in_errors_are_shortened():
  state = {f"extra{i}.weight": np.ones(1) for i in range(20)}
  with pytest.raises(ConfigError, match=r"20 unknown \(extra0\.weight, .*extra7\S+, and 12 more\)"):
    converted(state)


def test_two_values_for_one_variable_are_refused(state):
  state["linear.bias"] = state["fc.bias"]
  with pytest.raises(ConfigError, match=r"1 for one variable \(fc\.bias and linear\.bias\)"):
    converted(state)


def test_image_shape_sets_the_shape_of_the_first_layer():
  state = {"conv.weight": np.ones((4, 1, 3, 5), np.float32)}
  assert from_torch(state, Convolution(), image_shape=(8, 8, 1))
  with pytest.raises(ConfigError, match=r"\(3, 5, 1, 4\) from conv\.weight, expected \(3, 5, 3, "):
    from_torch(state, Convolution())


class Convolution(nn.Module):
  torch_names = (("conv", "conv"),)

  @nn.compact
  def __call__(self, images):
    return nn.Conv(4, (3, 5), use_bias=False, name="conv")(images)


def test_error_for_a_model_without_torch_names_lists_the_models_with_them():
  with pytest.raises(
    ConfigError, match=r"this Dense: pass names=.*they are known for .*CifarResNet.*MSDNet"
  ):
    from_torch({"weight": np.ones((3, 4))}, nn.Dense(3))
  with pytest.raises(ConfigError, match="no PyTorch names are known for this Branched"):
    from_torch({"weight": np.ones((3, 4))}, Branched(nn.Dense(3), 2))


def test_error_names_the_file():
  with pytest.raises(ConfigError, match=r"checkpoint\.pth: not the weights of this CifarResNet: 1"):
    from_torch(FILES / "checkpoint.pth", create("resnet8_w4", num_classes=3))
  with pytest.raises(ConfigError, match=r"absent\.pth: no such file"):
    from_torch("absent.pth", create("resnet8_w4", num_classes=3))


def test_file_and_its_mapping_give_equal_variables():
  class Linear(nn.Module):
    torch_names = (("", "layer"),)

    @nn.compact
    def __call__(self, images):
      return nn.Dense(2, use_bias=False, name="layer")(images)

  for name in ("checkpoint.pth", "checkpoint_legacy.pth"):
    variables = from_torch(str(FILES / name), Linear(), image_shape=(1, 1, 3))
    kernel = variables["params"]["layer"]["kernel"]
    np.testing.assert_array_equal(kernel, np.arange(6).reshape(2, 3).T / 8)


@pytest.mark.parametrize(
  ("name", "path"),
  [
    ("conv1", "branched/trunk/stem_conv"),
    ("layer2.4.bn2", "branched/trunk/stage2_4/bn2"),
    ("layer3_1.0.downsample.1", "branched/branches_0/stage3_0/downsample_bn"),
    ("layer3_3.4.conv1", "branched/branches_2/stage3_4/conv1"),
    ("classfier3_2", "branched/branches_1/classifier"),
    ("control_v1", "gate/linear"),
    ("bn_v1", "gate/bn"),
    ("layer4_1", "branched/branches_0/layer4"),  # of no variable
    ("control_v2", None),
  ],
)
def test_names_of_one_map_to_trunk_branches_and_gate(name, path):
  model = GatedBranches(Branched(CifarResNet(5, (16, 16, 32, 64), 100), 3), Gate(3))
  assert module_path(name, model.torch_names) == path


def test_branches_without_a_gate_have_the_same_names():
  names = Branched(CifarResNet(1, (4, 4, 8, 16), 3), 2).torch_names
  assert module_path("layer3_2.0.conv1", names) == "branches_1/stage3_0/conv1"
  assert module_path("bn1", names) == "trunk/stem_bn"
