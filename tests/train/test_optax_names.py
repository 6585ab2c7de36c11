"""Optimizers and schedules of optax by name: equal to optax's own, and wrong names are refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.train import learning_rate_schedule, make_optimizer, optax_names
from tests.test_bad_input import dataset, settings_for
from tests.train.test_resume import Broken, StopAfter, assert_same, train

RATE = optax.constant_schedule(0.1)
PARAMS = {"w": jnp.arange(6.0).reshape(2, 3) + 1, "b": jnp.array([0.5, -2.0])}


def updates_of(optimizer, params=PARAMS, count=3):
  state, found = optimizer.init(params), []
  for number in range(count):
    gradients = jax.tree.map(lambda w, k=number: jnp.sin(w + k), params)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    found.append(updates)
  return found


USABLE = {
  "optax.lion": ({"b1": 0.8, "b2": 0.95}, optax.lion(RATE, 0.8, 0.95, weight_decay=0.0)),
  "optax.adam": ({"eps": 1e-3}, optax.adam(RATE, eps=1e-3)),
  "optax.lamb": ({}, optax.lamb(RATE)),
  "optax.rmsprop": ({"decay": 0.5, "centered": True}, optax.rmsprop(RATE, 0.5, centered=True)),
  "optax.sgd": ({"momentum": 0.5, "nesterov": True}, optax.sgd(RATE, 0.5, nesterov=True)),
  "optax.contrib.prodigy": ({}, optax.contrib.prodigy(RATE)),
  "optax.adafactor": ({"min_dim_size_to_factor": 2}, optax.adafactor(RATE, 2)),
}


@pytest.mark.parametrize("name", USABLE)
def test_optimizer_of_a_name_makes_the_updates_of_optax(name):
  arguments, expected = USABLE[name]
  made = make_optimizer(name, RATE, arguments=arguments)
  chex.assert_trees_all_close(updates_of(made), updates_of(expected), rtol=1e-6, atol=1e-12)


def test_weight_decay_is_the_optimizers_own_or_is_added_to_the_gradient():
  lion = make_optimizer("optax.lion", RATE, weight_decay=0.3)
  chex.assert_trees_all_close(updates_of(lion), updates_of(optax.lion(RATE, weight_decay=0.3)))
  adam = make_optimizer("optax.adam", RATE, weight_decay=0.3, clip_norm=0.5)
  parts = optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.3), optax.adam(RATE)
  chex.assert_trees_all_close(updates_of(adam), updates_of(optax.chain(*parts)))


def test_adamw_takes_arguments_and_is_as_before_without():
  made = make_optimizer("adamw", RATE, weight_decay=0.1, arguments={"b2": 0.9})
  expected = optax.adamw(RATE, b2=0.9, weight_decay=0.1)
  chex.assert_trees_all_close(updates_of(made), updates_of(expected))


@pytest.mark.parametrize(
  ("name", "arguments", "expected"),
  [
    (
      "optax.cosine_onecycle_schedule",
      {"pct_start": 0.5},
      optax.cosine_onecycle_schedule(40, 0.5, 0.5),
    ),
    (
      "optax.warmup_cosine_decay_schedule",
      {"init_value": 0.01, "warmup_epochs": 1},
      optax.warmup_cosine_decay_schedule(0.01, 0.5, 10, 40),
    ),
    (
      "optax.linear_schedule",
      {"end_value": 0.1, "transition_steps": 7},
      optax.linear_schedule(0.5, 0.1, 7),
    ),
    (
      "optax.exponential_decay",
      {
        "decay_rate": 0.5,
        "transition_steps": 5,
        "transition_begin_epochs": 2,
        "staircase": True,
      },
      optax.exponential_decay(0.5, 5, 0.5, 20, staircase=True),
    ),
    (
      "optax.piecewise_constant_schedule",
      {"boundaries_and_scales": {"3": 0.1}},
      optax.piecewise_constant_schedule(0.5, {3: 0.1}),
    ),
  ],
)
def test_schedule_of_a_name_is_that_of_optax_with_epochs_converted(name, arguments, expected):
  rate = learning_rate_schedule(
    name, learning_rate=0.5, epochs=4, steps_per_epoch=10, arguments=arguments
  )
  steps = jnp.arange(45)
  np.testing.assert_array_equal(jax.vmap(rate)(steps), jax.vmap(expected)(steps))
  warm = learning_rate_schedule(
    name, learning_rate=0.5, epochs=4, steps_per_epoch=10, warmup_epochs=1, arguments=arguments
  )
  np.testing.assert_allclose(warm(4), 0.5 * expected(4), rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "arguments", "message"),
  [
    ("optax.lionn", {}, "did you mean 'optax.lion'"),
    ("lion", {}, "unknown optimizer 'lion': .*optax.NAME"),
    ("optax.contrib.muonn", {}, "did you mean 'optax.contrib.muon'"),
    ("optax.chain", {}, "optax has it, but it is no optimizer"),
    ("optax.scale_by_adam", {}, "no optimizer"),
    ("optax.cosine_decay_schedule", {}, "no optimizer"),
    ("optax.__name__", {}, "no optimizer"),
    ("optax.lbfgs", {}, "cannot be used by a step.*'value'"),
    ("optax.rprop", {}, "cannot be used by a step, which gives it a schedule"),
    ("optax.contrib.schedule_free_sgd", {}, "other parameters"),
    ("optax.contrib.dpsgd", {"l2_norm_clip": 1.0, "noise_multiplier": 1.0, "seed": 0}, "cannot be"),
    ("optax.lion", {"b3": 0.5}, "unknown argument of optax.lion 'b3'.*b1"),
    ("optax.lion", {"b1": 1.0}, "b1=1.0: optax.lion expects a number < 1"),
    ("optax.lion", {"b1": "x"}, "b1='x': optax.lion expects a number >= 0"),
    ("optax.lion", {"b1": None}, "b1=None"),
    ("optax.lion", {"mu_dtype": "nope"}, "mu_dtype='nope'"),
    ("optax.lion", {"mask": True}, "takes a function there"),
    ("optax.lion", {"learning_rate": 1.0}, "gets it from learning_rate"),
    ("optax.lion", {"weight_decay": 1.0}, "from the field weight_decay"),
    ("optax.sgd", {"nesterov": 1}, "expects True or False"),
    ("optax.sgd", {"momentum": "x"}, "momentum='x'"),
    ("sgd", {"b1": 0.9}, "optimizer='sgd' takes none"),
    ("adamw", {"b4": 0.9}, "unknown argument of optax.adamw 'b4'"),
  ],
)
def test_what_is_no_optimizer_or_does_not_fit_it_is_refused(name, arguments, message):
  with pytest.raises(ConfigError, match=message) as caught:
    make_optimizer(name, RATE, arguments=arguments)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("name", "arguments", "message"),
  [
    ("optax.cosine_onecycle", {}, "did you mean 'optax.cosine_onecycle_schedule'"),
    ("optax.adam", {}, "no schedule"),
    ("optax.join_schedules", {}, "made of other schedules"),
    ("optax.sgdr_schedule", {}, "made of other schedules"),
    ("optax.linear_schedule", {}, "'end_value' must be given"),
    ("optax.linear_schedule", {"end_value": -1.0}, "end_value=-1.0"),
    ("optax.linear_schedule", {"end_value": 0, "init_value": 1.0}, "from learning_rate"),
    ("optax.linear_schedule", {"end_value": 0, "transition_steps": 2.5}, "an integer >= 0"),
    ("optax.linear_schedule", {"end_value": 0, "transition_epochs": "1"}, "a number >= 0"),
    (
      "optax.linear_schedule",
      {"end_value": 0, "transition_epochs": 1, "transition_steps": 1},
      "not both",
    ),
    ("optax.linear_schedule", {"end": 0}, "unknown argument of optax.linear_schedule 'end'"),
    ("optax.piecewise_constant_schedule", {"boundaries_and_scales": {"x": 1}}, "update: factor"),
    ("optax.piecewise_constant_schedule", {"boundaries_and_scales": {"2": -1}}, "boundaries"),
    ("optax.warmup_cosine_decay_schedule", {"init_value": 0, "warmup_epochs": 9}, "decay_steps"),
    ("cosine", {"alpha": 0.1}, "takes none"),
    ("cosin", {}, "did you mean 'cosine'"),
  ],
)
def test_what_is_no_schedule_or_does_not_fit_it_is_refused(name, arguments, message):
  with pytest.raises(ConfigError, match=message) as caught:
    learning_rate_schedule(
      name, learning_rate=0.5, epochs=4, steps_per_epoch=10, arguments=arguments
    )
  assert "\n" not in str(caught.value)


def test_every_optimizer_of_this_optax_is_usable_or_refused_in_one_line():
  found = {}
  for prefix in ("optax.", "optax.contrib."):
    for name in optax_names._names(prefix, optax_names._is_optimizer):
      try:
        found[prefix + name] = bool(optax_names.optimizer_of(prefix + name, RATE, {}))
      except ConfigError as error:
        assert "\n" not in str(error)
        found[prefix + name] = False
  assert sum(found.values()) >= 25
  assert {"optax.adabelief", "optax.lars", "optax.contrib.muon"} <= found.keys()


def test_resumes_exactly_with_an_optimizer_and_a_schedule_of_optax(tmp_path):
  rate = learning_rate_schedule(
    "optax.cosine_onecycle_schedule", learning_rate=0.01, epochs=4, steps_per_epoch=3
  )
  made = {"optimizer": make_optimizer("optax.lion", rate, weight_decay=0.1)}
  expected = train(tmp_path / "whole", **made)
  with pytest.raises(Broken):
    train(tmp_path / "cut", StopAfter(7), checkpoint_seconds=0.0, **made)
  assert_same(train(tmp_path / "cut", **made).participants, expected.participants)


@pytest.mark.parametrize("given", [{"b1": 0.8, "b2": 0.95}, "b1=0.8,b2=0.95", "b1=0.8, b2 = .95"])
def test_config_sets_optimizer_and_schedule_of_a_section(given):
  student = {
    "optimizer": "optax.lion",
    "optimizer_arguments": given,
    "schedule": "optax.cosine_onecycle_schedule",
    "schedule_arguments": "pct_start=0.5",
    "learning_rate": 0.1,
    "weight_decay": 0.0,
    "epochs": 4,
  }
  settings = settings_for("alone", student=student)
  config.check_config(settings)
  [phase] = build.phases(settings, dataset(), traced=False)
  schedule = optax.cosine_onecycle_schedule(phase.steps, 0.1, 0.5)
  expected = optax.lion(schedule, 0.8, 0.95, weight_decay=0.0)
  chex.assert_trees_all_close(updates_of(phase.optimizer), updates_of(expected))


@pytest.mark.parametrize(
  ("student", "message"),
  [
    ({"optimizer": "optax.lionn"}, "^student.optimizer: unknown optimizer.*optax.lion"),
    (
      {"optimizer": "lion"},
      "student.optimizer='lion': expected one of sgd, adamw, dot, or one of optax",
    ),
    ({"optimizer": "optax.adam", "momentum": 0.5}, "student.momentum=0.5: expected 0.9"),
    ({"optimizer": "optax.adam", "nesterov": True}, "student.nesterov=True: expected False"),
    (
      {"optimizer": "optax.adam", "optimizer_arguments": {"b9": 1}},
      "student.optimizer_arguments: unknown argument",
    ),
    ({"optimizer_arguments": {"b1": 0.9}}, "student.optimizer_arguments: .*'sgd' takes none"),
    ({"optimizer_arguments": "b1"}, "student.optimizer_arguments='b1': expected a mapping"),
    ({"optimizer_arguments": "b1=1,b1=2"}, "student.optimizer_arguments="),
    ({"optimizer_arguments": "b1=f(2)"}, "student.optimizer_arguments="),
    ({"optimizer_arguments": 3}, "student.optimizer_arguments=3"),
    ({"schedule": "optax.linear"}, "student.schedule: unknown schedule"),
    ({"schedule_arguments": {"alpha": 1}}, "student.schedule_arguments: .*takes none"),
    (
      {"schedule": "optax.linear_schedule", "schedule_arguments": "end=0"},
      "student.schedule_arguments: unknown argument",
    ),
  ],
)
def test_config_names_the_field_that_is_wrong(student, message):
  with pytest.raises(ConfigError, match=message) as caught:
    config.check_config(settings_for("alone", student=student))
  assert "\n" not in str(caught.value)


def test_added_weight_decay_is_said():
  settings = settings_for("alone", student={"optimizer": "optax.adam", "schedule": "constant"})
  assert config.remarks(settings) == [
    "student.weight_decay=0.0005 is added to the gradient, as optax.adam takes none; 0 is none"
  ]
  settings.student.weight_decay = 0.0
  assert config.remarks(settings) == []
