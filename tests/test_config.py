"""Configs: wrong values give one line, and the delivered configs are valid."""

import copy
import functools
import importlib
import math

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd import methods, models
from jaxkd.errors import ConfigError
from jaxkd.experiment import config
from jaxkd.fields import Field

each_method = pytest.mark.parametrize("method", [*sorted(methods.METHODS), "kd+at"])
each_file = pytest.mark.parametrize("file", ["cifar100", "digits", "fashion_mnist", "imagenet"])


def leaves(fields, path=()):
  for name, field in fields.items():
    if isinstance(field, Field):
      yield (*path, name), field
    else:
      yield from leaves(field, (*path, name))


def changed(method, path, value):
  """The default config of `method` with another value at `path`, whatever its type."""
  tree = copy.deepcopy(config.base_config(method).to_dict())
  *sections, name = path
  functools.reduce(dict.__getitem__, sections, tree)[name] = value
  return ml_collections.ConfigDict(tree)


NOT_NUMBERS = st.one_of(
  st.text(),
  st.none(),
  st.booleans(),
  st.lists(st.integers()),
  st.sampled_from([math.nan, math.inf, -math.inf, 1j]),
)


def wrong_values(path, field):
  """Values that the field could not mean."""
  default = field.default
  if field.meaning.startswith("one of"):
    return st.one_of(st.text().map("no ".__add__), st.integers(), st.none())
  if isinstance(default, bool):
    return st.one_of(st.integers(min_value=2), st.text(), st.none(), st.floats(), st.just(1))
  if isinstance(default, int):
    fractions = st.floats(-100, 100).filter(lambda x: x != int(x))
    return st.one_of(NOT_NUMBERS, fractions, st.integers(max_value=-1))
  if isinstance(default, float):
    return st.one_of(NOT_NUMBERS, st.floats(max_value=-1e-9), st.just(10**400))
  if isinstance(default, str):
    return st.one_of(st.integers(), st.floats(), st.none(), st.lists(st.text()))
  if field.meaning == "a tuple of rising positive numbers":
    wrong = [(2, 1), (3, 3), (0, 1), (-1,), (math.inf,), (10**400,), ("1",), (None,), (True,)]
    return st.one_of(st.sampled_from(wrong), st.text(), st.none(), st.floats())
  if field.meaning in ("a tuple of positive numbers", "a tuple of rising positive numbers"):
    wrong = [(0.0,), (-1.0, 1.0), (math.inf,), ("1",), (None,), (True,)]
    return st.one_of(st.sampled_from(wrong), st.text(), st.none(), st.floats())
  if path[-1] in ("mean", "std"):
    wrong = [(math.nan,), ("1",), (None,), (True,), ((0.5,), 0.5), ((("1",),),)]
    wrong += [(0.0,), (-1.0,), ((0.5,), (0.0,))] if path[-1] == "std" else []
    return st.one_of(st.sampled_from(wrong), st.text(), st.none(), st.floats())
  if path[-1] == "class_weights":
    wrong = [(0.0,), (-1.0, 1.0), (math.nan,), ("1",), (None,), (True,), "balance"]
    return st.one_of(st.sampled_from(wrong), st.none(), st.floats(), st.integers())
  if path[-1].endswith("_arguments"):
    return st.one_of(st.integers(), st.floats(), st.none(), st.just("b1"), st.just((1, 2)))
  assert field.meaning == "a tuple of names"
  empty = [] if field.accepts(()) else [st.just(())]
  return st.one_of(st.text(), st.none(), *empty, st.lists(st.integers(), min_size=1))


@each_method
@given(data=st.data())
def test_a_wrong_value_is_refused_in_one_line_that_names_field_and_value(method, data):
  path, field = data.draw(st.sampled_from(list(leaves(config.fields(method)))))
  value = data.draw(wrong_values(path, field))
  with pytest.raises(ConfigError) as caught:
    config.check_config(changed(method, path, value))
  message = str(caught.value)
  assert len(message.splitlines()) == 1
  if path == ("method", "name"):
    assert message.startswith("unknown method ")
  else:
    assert message.startswith(f"{'.'.join(path)}={ml_collections.ConfigDict({'v': value}).v!r}: ")
    assert "expected " in message


@each_method
@given(data=st.data())
def test_a_missing_field_is_named(method, data):
  tree = config.base_config(method).to_dict()
  path, _ = data.draw(st.sampled_from(list(leaves(config.fields(method)))))
  *sections, name = path
  del functools.reduce(dict.__getitem__, sections, tree)[name]
  expected = "unknown method ''" if path == ("method", "name") else f"{'.'.join(path)} is missing"
  with pytest.raises(ConfigError, match=f"^{expected}"):
    config.check_config(ml_collections.ConfigDict(tree))


@each_method
def test_the_defaults_of_every_method_pass(method):
  config.check_config(config.base_config(method))


@each_method
@each_file
def test_the_delivered_configs_pass_for_every_method(file, method):
  settings = importlib.import_module(f"configs.{file}").get_config(method)
  config.check_config(settings)
  assert settings.method.name == method
  assert settings.data.name == file


@each_file
def test_a_delivered_config_refuses_an_unknown_method(file):
  with pytest.raises(ConfigError, match="unknown method 'fitnet': did you mean 'fitnets'"):
    importlib.import_module(f"configs.{file}").get_config("fitnet")


def test_an_unknown_field_is_refused_with_section_and_similar_names():
  with pytest.raises(
    ConfigError, match=r"^unknown field of student 'learning_rat': did you mean 'learning_rate'"
  ):
    config.check_config(changed("kd", ("student", "learning_rat"), 0.1))
  with pytest.raises(
    ConfigError, match=r"^unknown field of the config 'batchsize': .*'batch_size'"
  ):
    config.check_config(changed("kd", ("batchsize",), 8))
  with pytest.raises(
    ConfigError,
    match=r"^unknown field of method 'power': known: assistants, beta, combine, divergence, ",
  ):
    config.check_config(changed("kd", ("method", "power"), 2.0))


@pytest.mark.parametrize("value", [None, 3, "kd", [1]])
def test_a_value_in_place_of_a_section_is_refused(value):
  with pytest.raises(ConfigError, match=r"^student=.*expected a section with model, epochs"):
    config.check_config(changed("kd", ("student",), value))
  with pytest.raises(ConfigError, match=r"method"):
    config.check_config(changed("kd", ("method",), value))


OWN_RECIPES = {
  "netaug": {
    "epochs": 155,
    "schedule": "cosine",
    "warmup_epochs": 5.0,
    "nesterov": True,
    "weight_decay": 4e-5,
    "label_smoothing": 0.1,
  },
  "dml": {"epochs": 200, "learning_rate": 0.1, "nesterov": True, "drops": (60, 120, 180)},
  "one": {"epochs": 300, "learning_rate": 0.1, "weight_decay": 1e-4, "drops": (151, 225)},
  "byot": {"epochs": 200, "learning_rate": 0.1, "drops": (75, 130, 180)},
  "multi_exit": {
    "epochs": 300,
    "learning_rate": 0.1,
    "nesterov": True,
    "weight_decay": 1e-4,
    "drops": (150, 225),
  },
  "cskd": {"epochs": 200, "learning_rate": 0.1, "weight_decay": 1e-4, "drops": (100, 150)},
  "okddip": {"epochs": 300, "learning_rate": 0.1, "nesterov": True, "drops": (150, 225)},
  "pskd": {"epochs": 300, "learning_rate": 0.1, "nesterov": True, "drops": (150, 225)},
  "mlkd": {"learning_rate": 0.025},
}
BATCHES_OF_128 = ("one", "byot", "pskd", "cskd", "okddip")


@pytest.mark.parametrize("method", OWN_RECIPES)
def test_methods_missing_in_the_tables_have_their_own_recipes(method):
  configs = importlib.import_module("configs.cifar100")
  usual = config.base_config(method).student.to_dict()
  settings = configs.get_config(f"{method}@resnet110-resnet32")
  want = {**usual, **OWN_RECIPES[method], "model": "resnet32"}
  assert settings.student.to_dict() == want
  assert settings.batch_size == (128 if method in BATCHES_OF_128 else 64)
  assert configs.get_config(f"{method}@vgg13-mobilenetv2").student.learning_rate == 0.01


def test_multi_exit_alone_is_its_authors_msdnet_on_few_images():
  settings = importlib.import_module("configs.cifar100").get_config("multi_exit")
  config.check_config(settings)
  assert (settings.student.model, settings.keep) == ("msdnet_11", "best")
  assert (settings.data.per_class, settings.data.validation) == (100, 0.1)
  assert settings.method.scale == pytest.approx(2 * 5 / 11)
  model = models.create("msdnet_11", num_classes=100)
  assert (model.num_exits, model.prune, model.bottleneck_factors) == (11, "min", (4, 4, 4))


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_imagenet_is_the_tables_recipe_for_both_pairs(method):
  configs = importlib.import_module("configs.imagenet")
  for pair in configs.PAIRS:
    settings = configs.get_config(f"{method}@{pair}")
    config.check_config(settings)
    assert f"{settings.teacher.model}-{settings.student.model}" == pair
    assert settings.teacher.model in models.names() and settings.student.model in models.names()
    assert settings.batch_size == 256 and settings.data.resized_crop == 224
    for network in (settings.teacher, settings.student):
      assert (network.learning_rate, network.weight_decay) == (0.1, 1e-4)
      assert tuple(network.drops)[:2] == (30, 60)
    assert settings.student.epochs == {"simkd": 120, "ft": 90}.get(method, 100)
  if method == "kd":
    own = settings.method
    assert (own.label_weight, own.weight, own.temperature) == (0.5, 0.5, 1.0)


@pytest.mark.parametrize("method", sorted({*methods.METHODS, "kd+at"} - set(OWN_RECIPES)))
def test_cifar100_is_repdistillers_recipe(method):
  settings = importlib.import_module("configs.cifar100").get_config(method)
  for network in (settings.teacher, settings.student):
    others = {
      "model",
      "bundle",
      "weights",
      "mean",
      "std",
      "image_size",
      "count",
      "rescore",
      "quantize",
    }
    others |= {"logits", "missing", "new_head", "finetune_epochs", "finetune_learning_rate"}
    others |= {"stablehlo", "allow_import", "weights_part"}
    recipe = {n: v for n, v in network.to_dict().items() if n not in others}
    assert recipe == {
      "epochs": 240,
      "optimizer": "sgd",
      "optimizer_arguments": {},
      "learning_rate": 0.05,
      "momentum": 0.9,
      "nesterov": False,
      "weight_decay": 5e-4,
      "clip_norm": 0.0,
      "schedule": "step",
      "schedule_arguments": {},
      "drops": (150, 180, 210),
      "drop_factor": 0.1,
      "warmup_epochs": 0.0,
      "average_decay": 0.0,
      "label_smoothing": 0.0,
      "class_weights": (),
      "patience": 0,
      "dropout": 0.0,
      "tap": "",
      "tap_preactivations": "",
    }
  assert (settings.batch_size, settings.accumulate, settings.keep) == (64, 1, "last")
  data = settings.data.to_dict()
  # All 50,000 images, augmented by crop and flip alone.
  assert data == {
    "name": "cifar100",
    "directory": "",
    "validation": 0.0,
    "split_seed": -1,
    "image_size": 0,
    "labels": "single",
    "test": 0.0,
    "unlabelled_folder": "",
    "per_class": 0,
    "unlabelled": 0,
    "teacher_per_class": 0,
    "test_per_class": 0,
    "crop": 4,
    "resized_crop": 0,
    "views": 0,
    "flip": True,
    "cutout": 0,
    "mixup": 0.0,
  }


def test_cifar100_has_the_pairs_of_the_published_tables():
  configs = importlib.import_module("configs.cifar100")
  for pair in configs.PAIRS:
    settings = configs.get_config(f"at@{pair}")
    config.check_config(settings)
    assert f"{settings.teacher.model}-{settings.student.model}" == pair
    assert {settings.teacher.model, settings.student.model} <= set(models.names())
    small = settings.student.model.startswith(("mobilenet", "shufflenet"))
    assert settings.student.learning_rate == (0.01 if small else 0.05)
    assert settings.teacher.learning_rate == 0.05
  with pytest.raises(ConfigError, match="unknown pair 'vgg13-vgg9': did you mean 'vgg13-vgg8'"):
    configs.get_config("kd@vgg13-vgg9")


def test_dkd_has_the_published_weight_of_the_other_classes_of_each_pair():
  configs = importlib.import_module("configs.cifar100")
  for pair, beta in (
    ("resnet32x4-resnet8x4", 8.0), ("resnet56-resnet20", 2.0), ("vgg13-vgg8", 6.0),
  ):  # fmt: skip
    assert configs.get_config(f"dkd@{pair}").method.others_weight == beta
  assert configs.get_config("dkd+at@vgg13-vgg8").method.dkd.others_weight == 6.0


@pytest.mark.parametrize(
  ("file", "delta", "rate", "size"), [("cifar100", 0.075, 0.05, 64), ("imagenet", 0.09, 0.2, 512)]
)
def test_dot_is_a_variant_of_any_recipe(file, delta, rate, size):
  configs = importlib.import_module(f"configs.{file}")
  for argument in ("kd@dot", f"kd@{configs.PAIRS[0]}@dot", f"simkd@{configs.PAIRS[1]}@dot"):
    settings = configs.get_config(argument)
    config.check_config(settings)
    student = settings.student
    assert (student.optimizer, student.optimizer_arguments.delta) == ("dot", delta)
    assert (student.learning_rate, student.momentum, settings.batch_size) == (rate, 0.9, size)
    plain = configs.get_config(argument.removesuffix("@dot"))
    assert settings.method == plain.method and settings.teacher == plain.teacher
  with pytest.raises(ConfigError, match="unknown pair 'dott'"):
    configs.get_config("kd@dott")


def test_sdd_has_the_published_scales_of_each_pair():
  configs = importlib.import_module("configs.cifar100")
  for pair, scales in (
    ("resnet32x4-resnet8x4", (1, 2)), ("resnet32x4-shufflenetv1", (1, 2, 4)),
  ):  # fmt: skip
    assert configs.get_config(f"sdd@{pair}").method.scales == scales


@pytest.mark.parametrize("file", ["digits", "fashion_mnist", "cifar100", "imagenet"])
def test_patient_is_a_long_training_without_labels_from_mixtures(file):
  settings = importlib.import_module(f"configs.{file}").get_config("patient")
  config.check_config(settings)
  assert settings.method.name == "kd" and settings.data.mixup == 1
  assert (settings.method.label_weight, settings.method.temperature) == (0, 1)
  usual = importlib.import_module(f"configs.{file}").get_config("kd").student
  assert settings.student.epochs >= 5 * usual.epochs and settings.student.schedule == "cosine"


def test_methods_start_from_the_published_hyperparameters():
  published = {
    "dkd": {"temperature": 4.0, "target_weight": 1.0, "others_weight": 8.0, "warmup_epochs": 20.0},
    "kd": {
      "temperature": 4.0,
      "weight": 0.9,
      "label_weight": 0.1,
      "divergence": "forward",
      "standardize": False,
      "top_k": 0,
    },
    "sdd": {
      "form": "kd",
      "temperature": 4.0,
      "scales": (1, 2),
      "weight": 0.9,
      "label_weight": 0.1,
      "target_weight": 1.0,
      "others_weight": 8.0,
      "gamma": 1.5,
    },
    "dist": {"temperature": 4.0, "inter_weight": 1.0, "intra_weight": 1.0, "weight": 2.0},
    "nkd": {"temperature": 3.0, "others_weight": 3.5, "without_target": True, "weight": 1.0},
    "ttm": {"exponent": 0.1, "weight": 45.0, "label_weight": 1.0},
    "wttm": {"exponent": 0.2, "weight": 4.0, "label_weight": 1.0},
    "tfkd": {"form": "regularization", "temperature": 20.0, "weight": 0.1, "label_weight": 0.9},
    "uskd": {"target_weight": 0.1, "others_weight": 0.1, "weak_weight": 0.1, "label_weight": 1.0},
    "fitnets": {"stage": "auto", "weight": 100.0, "label_weight": 1.0},
    "at": {"power": 2.0, "norm": "code", "weight": 1000.0, "label_weight": 1.0},
    "simkd": {"stage": "auto", "reduction": 2, "weight": 1.0, "reused_stages": 0},
    "gradient_at": {"stages": ("images",), "norm": "l2", "normalize": False},
    "nst": {"kernel": "polynomial", "degree": 2, "offset": 0.0, "weight": 50.0},
    "ft": {"stage": "auto", "rate": 0.5, "weight": 500.0, "reconstruction": "l1"},
    "ab": {"margin": 1.0, "two_stage": True, "second_kd_weight": 1.0, "second_temperature": 3.0},
    "fsp": {"pool": "average", "two_stage": True, "second_kd_weight": 0.0},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0, "stages": ("pooled",)},
    "mgd": {"mask": "channel", "masked": 0.15, "weight": 7e-5},
    "catkd": {"resolution": 2, "normalize": True, "binarize": False, "weight": 400.0},
    "deit": {"kind": "hard", "temperature": 1.0, "weight": 0.5, "label_weight": 0.5},
    "vitkd": {"low_weight": 3e-5, "high_weight": 3e-6, "masked": 0.5},
    "vkd": {"standardize": "teacher", "weight": 1.0, "label_weight": 1.0},
    "cwd": {"norm": "channel", "divergence": "kl", "temperature": 4.0, "weight": 3.0},
    "skd": {"pixel_weight": 10.0, "pair_weight": 1.0, "scale": 0.5, "pool": "max"},
    "sp": {"stages": ("auto",), "row_norm": "l2", "weight": 3000.0, "label_weight": 1.0},
    "pskd": {"past_weight": 0.8},
    "ickd": {"stages": ("auto",), "weight": 2.5, "label_weight": 1.0},
    "vid": {"stages": ("auto",), "eps": 1e-5, "initial_variance": 5.0, "weight": 1.0},
    "srrl": {"stage": "auto", "logit_weight": 1.0, "weight": 1.0, "label_weight": 1.0},
    "kdsvd": {"stages": ("auto",), "count": 1, "layout": "channels", "weight": 1.0},
    "cc": {"form": "gaussian", "gamma": 0.4, "order": 2, "weight": 100.0, "width": 128},
    "cskd": {"temperature": 4.0, "weight": 1.0, "squared_temperature": True},
    "kdcl": {"ensemble": "minlogit", "temperature": 2.0, "own_augmentations": True, "steps": 50},
    "okddip": {"peers": 3, "temperature": 3.0, "weight": 1.0, "ramp_epochs": 80.0},
    "pkt": {"stages": ("pooled",), "eps": 1e-7, "weight": 30000.0, "label_weight": 1.0},
    "reviewkd": {"stages": ("auto",), "width": 0, "warmup_epochs": 20.0, "weight": 5.0},
    "netaug": {"weight": 1.0, "widths": (1.0, 1.8, 2.6), "expansions": (1.0, 1.6, 2.2, 2.8)},
    "semckd": {"slots": 64, "factor": 4, "temperature": 1.0, "weight": 400.0},
    "ofd": {"stages": ("auto",), "margins": "norm", "weight": 1.0},
    "crd": {"stage": "pooled", "width": 128, "negatives": 16384, "temperature": 0.07},
    "ctkd": {"least_temperature": 1.0, "temperature_range": 20.0, "curriculum_epochs": 10},
    "mlkd": {"temperatures": (4.0, 3.0, 5.0, 2.0, 6.0), "weight": 0.9, "label_weight": 0.1},
    "ofa": {"exponent": 1.0, "temperature": 1.0, "stage_weight": 1.0, "logit_weight": 1.0},
  }
  for method, values in published.items():
    own = config.base_config(method).method
    assert {name: own[name] for name in values} == values
