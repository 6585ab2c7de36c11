"""Every method between networks of different kinds: the stages it compares, or the error."""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest

from jaxkd import models
from jaxkd.data import ArrayExamples, Dataset
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.models import registry

pytestmark = pytest.mark.long

SMALL = {
  "resnet": (models.CifarResNet, {"blocks": 1, "widths": (2, 2, 4, 6)}),
  "wrn": (models.WideResNet, {"blocks": 1, "widths": (2, 4, 6, 8)}),
  "vgg": (models.VGG, {"depths": (1,) * 5, "widths": (2, 2, 4, 4, 6)}),
  "mobilenet": (
    models.MobileNetV2,
    {"width": 0.25, "repeats": (1, 1, 1, 1, 1, 1, 1), "last_width": 8},
  ),
  "shufflenet": (
    models.ShuffleNetV2,
    {"stem": 4, "widths": (8, 12, 16), "blocks": (2, 2, 2), "last_width": 8},
  ),
  "vit": (models.VisionTransformer, {"patch": 4, "width": 8, "heads": 2, "depths": (1, 1, 1)}),
  "mlp": (models.MLP, {"widths": (8, 6)}),
}


@pytest.fixture
def planned(monkeypatch):
  small = {name: functools.partial(kind, **fields) for name, (kind, fields) in SMALL.items()}
  monkeypatch.setattr(registry, "_MODELS", small)

  def plan_for(method, student, teacher, *, traced=False, **fields):
    if not traced:
      # Tracing the objective takes most of the time; what is said of it is known before.
      monkeypatch.setattr(build, "_counted", lambda stages, data: stages)
    settings = config.base_config(method)
    settings.batch_size = 8
    settings.baseline = False
    settings.sync_batch_norm = False
    settings.data.crop = 1
    settings.teacher.model, settings.student.model = teacher, student
    settings.method.update(fields)
    config.check_config(settings)
    return build.phases(settings, dataset())

  return plan_for


def dataset():
  labels = np.arange(8, dtype=np.int32) % 4
  images = np.zeros((8, 16, 16, 1), np.uint8)
  examples = ArrayExamples(images, labels, np.arange(8, dtype=np.int32))
  return Dataset("drawn", examples, examples, examples, 4, (16, 16, 1), (0.5,), (0.3,))


@pytest.mark.parametrize(
  ("student", "teacher", "attention"),
  [
    # A ResNet's stages have 16, 8, 4 pixels, a VGG's 8, 4, 2, 2, a MobileNet's 8, 4, 2, 1.
    ("resnet", "wrn", "stage1 16x16x2 with stage1 16x16x4, stage2 8x8x4 with stage2 8x8x6"),
    ("vgg", "resnet", "stage1 8x8x2 with stage2 8x8x4, stage2 4x4x4 with stage3 4x4x6 of"),
    ("resnet", "mobilenet", "stage2 8x8x4 with stage1 8x8x6, stage3 4x4x6 with stage2 4x4x8 of"),
    ("shufflenet", "resnet", "stage1 8x8x8 with stage1 16x16x2, stage2 4x4x12 with stage2 8x8x4"),
    ("resnet", "vit", "stage1 16x16x2 with stage1 4x4x8, stage2 8x8x4 with stage2 4x4x8"),
  ],
)
def test_feature_methods_pair_stages_by_size_and_note_the_pairs(
  planned, student, teacher, attention
):
  *_, distilled = planned("at", student, teacher)
  [note] = distilled.notes
  assert note.startswith(f"at compares {attention}")
  assert note.endswith(" of the teacher")


@pytest.mark.parametrize(("student", "teacher"), [("vgg", "resnet"), ("resnet", "vit")])
def test_objectives_of_every_feature_method_can_be_traced(planned, student, teacher):
  # They add up: one trace for all of them.
  *_, distilled = planned("kd+fitnets+at+nst+fsp+rkd+ft", student, teacher, traced=True)
  compared = [note.split()[0] for note in distilled.notes]
  assert compared == ["fitnets", "at", "nst", "fsp", "rkd", "ft"]


@pytest.mark.parametrize("student", ["wrn", "vgg", "mobilenet"])
def test_first_phase_of_ab_ends_where_its_preactivations_are_computed(planned, student):
  # A pre-activation network gives the last of them with the layers after it.
  _, warmup, _ = planned("ab", student, "resnet", traced=student == "wrn")
  assert warmup.notes[0].startswith("ab compares preactivations of stage")


@pytest.mark.parametrize(
  ("student", "teacher", "matched"),
  [
    ("resnet", "wrn", "stage3 4x4x6 with stage3 4x4x8"),
    ("wrn", "vgg", "stage3 4x4x8 with stage4 2x2x6"),
    ("vgg", "mobilenet", "stage4 2x2x6 with stage4 1x1x80"),
    ("resnet", "shufflenet", "stage3 4x4x6 with stage3 2x2x16"),
    ("mobilenet", "vit", "stage4 1x1x80 with stage3 4x4x8"),
    ("vit", "resnet", "stage3 4x4x8 with stage3 4x4x6"),
    ("resnet", "mlp", "stage3 4x4x6 with stage2 6"),
    ("mlp", "mlp", "stage2 6 with stage2 6"),
  ],
)
def test_simkd_reuses_any_networks_classifier(planned, student, teacher, matched):
  _, distilled = planned("simkd", student, teacher, traced=teacher in ("mobilenet", "mlp"))
  assert distilled.notes == (f"simkd compares {matched} of the teacher",)


@pytest.mark.parametrize("student", ["wrn", "vgg", "mobilenet", "shufflenet", "vit", "mlp"])
def test_methods_without_a_teacher_accept_any_network(planned, student):
  [branches] = planned("one", student, "resnet")
  assert branches.notes[0].startswith("3 branches share the layers up to stage")
  [exits] = planned("multi_exit", student, "resnet")
  assert exits.notes[0].startswith("exits on stage1 ")


@pytest.mark.parametrize(
  ("method", "student", "teacher", "message"),
  [
    (
      "at",
      "resnet",
      "mlp",
      r"^method 'at' compares feature maps \(B, H, W, C\), and the teacher has none: it gives "
      r"pooled \(6,\), stage1 \(8,\), stage2 \(6,\)\. These methods can do with that: "
      "kd, .*fitnets, ",
    ),
    ("nst", "mlp", "resnet", r"^method 'nst' compares .* and the student has none"),
    ("kd+ft", "mlp", "resnet", r"^method 'ft' compares .* and the student has none"),
    ("ab", "resnet", "vit", r"^method 'ab' compares preactivations, and the teacher has none: it"),
    ("simkd", "mlp", "resnet", r"^the student has no feature maps \(B, H, W, C\) to compare: it"),
    ("byot", "mlp", "resnet", r"^bottleneck exits: the network gives no map"),
  ],
)
def test_a_method_refuses_networks_without_the_arrays_it_compares(
  planned, method, student, teacher, message
):
  with pytest.raises(ConfigError, match=message):
    planned(method, student, teacher)


def test_vectors_are_accepted_if_no_spatial_axis_is_compared(planned):
  for student, teacher in (("resnet", "mlp"), ("mlp", "vit"), ("mlp", "mlp")):
    *_, distilled = planned("kd+fitnets+rkd", student, teacher, traced=student == "resnet")
    assert any(note.startswith("fitnets compares ") for note in distilled.notes)


def test_stages_of_the_config_can_be_combined_with_auto(planned):
  *_, distilled = planned("at", "resnet", "vgg", stages=("stage1:stem", "auto"))
  assert distilled.notes == (
    "at compares stage1 16x16x2 with stem 16x16x2, stage2 8x8x4 with stage1 8x8x2, "
    "stage3 4x4x6 with stage2 4x4x4 of the teacher",
  )


@pytest.mark.parametrize(
  ("teacher", "activation", "relu"),
  [("vgg", "auto", True), ("wrn", "auto", False), ("wrn", "relu", True), ("vgg", "none", False)],
)
@pytest.mark.parametrize(
  ("method", "maker"), [("simkd", "projector_for"), ("fitnets", "regressor_for")]
)
def test_modules_that_imitate_signed_features_have_no_final_relu(
  planned, monkeypatch, method, maker, teacher, activation, relu
):
  module = importlib.import_module(f"jaxkd.methods.{method}")
  made = []
  make = getattr(module, maker)
  monkeypatch.setattr(module, maker, lambda *a, **k: made.append(make(*a, **k)) or made[-1])
  planned(method, "resnet", teacher, activation=activation)
  assert [connector.activation for connector in made] == [relu]
