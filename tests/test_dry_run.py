"""Dry runs: configs are lowered for accelerators and run on noise; failures name their phase."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import methods, models
from jaxkd.data import fake_dataset
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, dry_run
from jaxkd.experiment.dry_run import DryRunFailed, Plan
from jaxkd.types import Aux, Scheme
from tests import tiny


@pytest.fixture
def tiny_models(monkeypatch):
  """Replace models by networks that compile fast; the teacher is the wider one."""

  def create(name, *, num_classes, axis_name, dtype):
    if name in tiny.TRANSFORMERS:
      return tiny.create(name, num_classes=num_classes, axis_name=axis_name, dtype=dtype)
    width = 3 if "20" in name else 2
    return tiny.TinyNet(width, num_classes=num_classes, axis_name=axis_name, dtype=dtype)

  monkeypatch.setattr(models, "create", create)


def settings_for(method, **changes):
  settings = config.base_config(method)
  settings.batch_size = 16
  settings.teacher.model, settings.student.model = "resnet20", "resnet8"
  settings.update(changes)
  return settings


def test_every_step_is_lowered_for_tpu_and_cuda(tiny_models):
  planned = dry_run.prepare(settings_for("kd"))
  assert [phase.name for phase in planned.phases] == ["teacher", "alone", "distilled"]
  lowered = dry_run.lower(planned, skip=("teacher", "alone"))
  assert [(x.phase, x.step) for x in lowered] == [
    ("distilled", "training"),
    ("distilled", "evaluation"),
  ]
  assert all(x.platforms == ("tpu", "cuda") for x in lowered)
  assert all(set(x.convolutions) == set(x.losses) == {"f32"} for x in lowered)


# Fields that methods need for networks of two stages, and phases that are off by default.
ON_TWO_STAGES = {
  "nst": {"stages": ("stage2",)},
  "fsp": {"stages": ("stage1", "stage2")},
  "ft": {"stage": "stage2"},
  "fitnets": {"two_stage": True},
  "born_again": {"generations": 1},
}
PHASES = {
  "teacher": ["teacher"],
  "alone": ["alone"],
  "fitnets": ["warmup", "distilled"],
  "fsp": ["warmup", "distilled"],
  "ft": ["paraphraser", "distilled"],
  "ab": ["warmup", "distilled"],
  "born_again": ["alone", "generation_1"],
}
# Networks of methods that need tokens.
NETWORKS = {
  "deit": {"student": {"model": "deit_mini_p4"}},
  "vitkd": {"student": {"model": "deit_mini_p4"}, "teacher": {"model": "vit_tiny"}},
}
# One for each kind of scheme; a method takes a second.
ALWAYS = ("kd", "ft", "simkd", "dml")


@pytest.mark.long
@pytest.mark.parametrize(
  "method",
  [
    pytest.param(method, marks=() if method in ALWAYS else pytest.mark.long)
    for method in methods.METHODS
    if not methods.METHODS[method].only  # the networks are replaced
  ],
)
def test_with_bfloat16_networks_compute_in_it_and_losses_in_float32(tiny_models, method):
  settings = settings_for(method, compute_dtype="bfloat16", baseline=False)
  settings.method.update(ON_TWO_STAGES.get(method, {}))
  settings.update(NETWORKS.get(method, {}))
  planned = dry_run.prepare(settings)
  lowered = dry_run.lower(planned, skip=() if method == "teacher" else ("teacher",))
  trained = [x.phase for x in lowered if x.step == "training"]
  assert trained == PHASES.get(method, ["distilled"])
  for found in lowered:
    assert found.platforms == ("tpu", "cuda")
    assert set(found.convolutions) == {"bf16"} and set(found.losses) == {"f32"}


LOW = {
  "its value": (lambda w, x: w.astype(jnp.bfloat16) ** 2, optax.sgd(0.1)),
  "its softmax": (
    lambda w, x: jax.nn.logsumexp(w.astype(jnp.bfloat16) * x[:, 0]).astype(jnp.float32),
    optax.sgd(0.1),
  ),
  "its sum": (
    lambda w, x: jax.lax.reduce(
      w.astype(jnp.bfloat16) * x[0, 0], jnp.bfloat16(0), jax.lax.add, (0,)
    ).astype(jnp.float32),
    optax.sgd(0.1),
  ),
  "the optimizer": (
    lambda w, x: w**2,
    optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16),
  ),
}


@pytest.mark.parametrize("what", LOW)
def test_a_loss_or_a_state_in_bfloat16_is_an_error(what):
  value, optimizer = LOW[what]

  def loss(learning, participants, batch, targets, context):
    images = batch.inputs[..., 0].astype(jnp.bfloat16)
    return value(learning["student"]["w"], images), Aux({}, {}, {})

  phase = phase_of_one_number("alone", "student", optimizer=optimizer)
  phase = dataclasses.replace(phase, scheme=phase.scheme._replace(loss=loss))
  planned = Plan(settings_for("alone"), fake_dataset("digits"), [phase])
  named = r"1 results are not float32 \(.*trace.*w" if what == "the optimizer" else r"'bf16': \d"
  with pytest.raises(DryRunFailed, match=f"^phase 'alone': losses and metrics of .*{named}"):
    dry_run.lower(planned, device_count=2)


def test_a_convolution_in_another_type_is_an_error(tiny_models, monkeypatch):
  # This model ignores the configured type.
  monkeypatch.setattr(
    models, "create", lambda name, *, num_classes, **_: tiny.TinyNet(2, num_classes)
  )
  planned = dry_run.prepare(settings_for("alone", compute_dtype="bfloat16"))
  with pytest.raises(
    DryRunFailed,
    match=r"^phase 'alone': convolutions of its training step compute in {'f32': \d+}, expected",
  ):
    dry_run.lower(planned, device_count=2)


def test_a_config_is_tried_on_random_images(tiny_models):
  (ran,) = dry_run.dry_run(dry_run.prepare(settings_for("alone")), batch_size=2)
  assert ran.phase == "alone" and np.isfinite(ran.losses).all() and len(ran.losses) == 2


def phase_of_one_number(name, participant, factor=1.0, **changes):
  """A phase that compiles fast: each network is one number, and one of them learns to be 0."""

  def loss(learning, participants, batch, targets, context):
    return factor * learning[participant]["w"] ** 2, Aux({}, {}, {})

  scheme = Scheme(
    init=lambda rng, batch: {n: {"params": {"w": jnp.ones(())}} for n in ("teacher", "student")},
    targets=lambda participants, batch: (),
    loss=loss,
    predict=lambda participants, images: {},
    learners=(participant,),
    export=lambda participants: {},
  )
  return tiny.phase(name=name, scheme=scheme, average_decay=None, **changes)


def number(ran, participant):
  return float(ran.participants[participant]["params"]["w"])


def test_a_phase_starts_from_participants_of_earlier_ones():
  planned = Plan(
    None,
    None,
    [
      phase_of_one_number("teacher", "teacher"),
      phase_of_one_number("distilled", "student", inherit={"teacher": "teacher/teacher"}),
    ],
  )
  taught, distilled = dry_run.dry_run(planned, batch_size=2)
  assert number(taught, "teacher") == number(distilled, "teacher") < 1
  # Finished phases are skipped.
  finished = {"teacher": {"teacher": {"params": {"w": np.float32(7)}}}}
  (alone,) = dry_run.dry_run(planned, batch_size=2, finished=finished)
  assert number(alone, "teacher") == 7 and number(alone, "student") < 1


@pytest.mark.parametrize(
  ("factor", "message"),
  [
    (np.nan, "^phase 'alone': not finite at update 1: gradient_norm, loss$"),
    (0.0, "^phase 'alone': 'student' is to learn and did not move$"),
  ],
)
def test_failures_name_their_phase(factor, message):
  phases = [phase_of_one_number("alone", "student", factor)]
  with pytest.raises(DryRunFailed, match=message):
    dry_run.dry_run(Plan(None, None, phases), batch_size=2)


@pytest.mark.parametrize("file", ["cifar100", "imagenet"])
def test_every_method_of_every_pair_has_a_config_that_is_accepted(file):
  configs = importlib.import_module(f"configs.{file}")
  for pair in configs.PAIRS:
    for method in methods.METHODS:
      config.check_config(configs.get_config(f"{method}@{pair}"))


def test_networks_see_imagenet_cut_to_224(tiny_models):
  settings = importlib.import_module("configs.imagenet").get_config("kd")
  planned = dry_run.prepare(settings)
  assert planned.data.image_shape == (256, 256, 3) and len(planned.data.train) == 1_281_167
  stored = dry_run._stored(planned.data, 2, planned.phases[-1])
  for phase in planned.phases:
    seen = jax.eval_shape(phase.prepare_evaluation, stored)
    trained = jax.eval_shape(phase.prepare_training, jax.random.split(jax.random.key(0), 2), stored)
    assert seen.inputs.shape == trained.inputs.shape == (2, 224, 224, 3)
  assert build.as_seen(settings, planned.data).image_shape == (224, 224, 3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"resized_crop": 9}, "^data.resized_crop=9: the images of digits are 8x8$"),
    ({"resized_crop": 6, "crop": 1}, "^data.crop=1: expected 0 with data.resized_crop=6$"),
  ],
)
def test_crops_that_do_not_fit_are_refused(changes, message):
  settings = settings_for("alone", data=changes)
  with pytest.raises(ConfigError, match=message):
    dry_run.prepare(settings)


CONFIG = """
from jaxkd import methods
from jaxkd.experiment import config
PAIRS = ("resnet8_w8-resnet8_w4",)
def get_config(argument):
  method, _, pair = argument.partition("@")
  settings = config.base_config(method)
  settings.batch_size = 15
  settings.teacher.model, settings.student.model = PAIRS[0].split("-")
  return settings
"""


@pytest.mark.long
def test_the_script_reports_which_configs_passed_and_failed(tmp_path):
  config, workdir = tmp_path / "small.py", tmp_path / "runs"
  config.write_text(CONFIG)
  workdir.mkdir()
  passed = {"name": "small:kd@resnet8_w8-resnet8_w4", "lowered": [], "ran": [], "error": ""}
  (workdir / "dry_run.jsonl").write_text(json.dumps({**passed, "seconds": 1.0}) + "\n{cut sh")
  command = (
    f"experiments/studies/dry_run/dry_run.py --configs {config} --workdir {workdir} --skip_steps"
  )
  done = subprocess.run(
    [
      sys.executable,
      *command.split(),
      "--only=:(kd|alone)@.*4$",
      f"--output={tmp_path}/t.md",
    ],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": "."},
  )
  # Fifteen images cannot be shared by eight devices.
  assert done.returncode != 0
  assert "error: 1 of 2 failed: small:alone@resnet8_w8-resnet8_w4" in done.stderr
  assert "small:kd" not in done.stdout.partition("##")[0], "what passed is not tried again"
  assert "| resnet8_w8-resnet8_w4 | - | FAILED | L | - |" in (tmp_path / "t.md").read_text()
