"""Options of knowledge distillation, and standardised logits of every method with soft targets."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.losses._standardization import standardized
from jaxkd.methods._soft_targets import soft_targets
from jaxkd.tables import Table, TopK
from jaxkd.types import Context, Output
from tests.recorded_values.cases import PAIRS, schemes_of
from tests.tiny import batch

S, T = (Output(z) for z in np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32"))
CONTEXT = Context(jax.random.key(0), jnp.int32(0))


@pytest.mark.parametrize(
  ("variant", "message"),
  [
    ("kd/beta=0.3", r"beta is 0.3: divergence='forward' has none"),
    ("kd/divergence='skewed_reverse'/beta=1.0", r"beta is 1.0: a skewed divergence is 0 there"),
    ("kd/missing='impossible'", r"method.missing='impossible': expected 'bucket' with top_k=0"),
    ("kd/beta='half'", r"method.beta='half': expected \"auto\", or a number >= 0 and <= 1"),
    (
      "born_again/form='confidence'/standardize=True",
      r"method.standardize=True: expected False with form='confidence'",
    ),
    (
      "multi_exit/standardize=True",
      r"method.standardize=True: expected False with adapt_temperature=True",
    ),
  ],
)
def test_options_that_contradict_each_other_are_refused(variant, message):
  with pytest.raises(ConfigError, match=message):
    schemes_of(variant, PAIRS["resnets"])


@pytest.mark.parametrize(
  "options",
  [
    {"standardize": True},
    {"divergence": "jensen_shannon", "beta": 0.3},
    {"top_k": 2, "missing": "renormalized"},
  ],
)
def test_soft_targets_pass_their_options_on(options):
  labelled = batch(4)
  found = soft_targets(temperature=2.0, **options)(S, T, labelled, CONTEXT)
  expected = losses.knowledge_distillation(S, T, temperature=2.0, **options)
  plain = losses.knowledge_distillation(S, T, temperature=2.0)
  assert found.total == expected.total != plain.total
  several = dataclasses.replace(labelled, labels=jnp.zeros((4, 3)), multi_label=True)
  name, value = next(iter(options.items()))
  with pytest.raises(ConfigError, match=f"multi_label=True: expected .* with {name}={value!r}"):
    soft_targets(**options)(S, T, several, CONTEXT)


@pytest.mark.parametrize(
  ("stored", "missing"), [("spread", "bucket"), ("impossible", "impossible")]
)
def test_largest_classes_of_a_stored_teacher_are_compared_as_they_are(stored, missing):
  z = np.random.default_rng(1).normal(size=(2, 4, 7)).astype("float32")
  values, classes = jax.lax.top_k(jax.nn.log_softmax(z[1]), 3)
  table = Table(TopK(np.asarray(classes), np.asarray(values), 7, stored))
  rows = dataclasses.replace(batch(4), indices=jnp.arange(4))
  teacher = table.output("teacher", table.variables, rows)
  loss = soft_targets(temperature=1.0, top_k=3, missing=missing)
  expected = losses.top_k_divergence(z[0], classes, values, missing=missing)
  np.testing.assert_allclose(loss(Output(z[0]), teacher, rows, CONTEXT).total, expected, rtol=1e-5)


def exits(loss, **fixed):
  return lambda s, t, **options: loss([s, s, t], temperature=2.0, **fixed, **options)


EVERY = {
  "mutual": lambda s, t, **o: losses.mutual(s, [t, t], temperature=2.0, **o),
  "native_ensemble": lambda s, t, **o: losses.native_ensemble([s, s], t, temperature=2.0, **o),
  "multi_exit": exits(losses.multi_exit),
  "multi_exit ensemble": exits(losses.multi_exit, teachers="ensemble"),
  "be_your_own_teacher": exits(losses.be_your_own_teacher, feature_weight=0.0),
  "dark_knowledge_permuted": lambda s, t, **o: losses.dark_knowledge_permuted(
    s, t, jax.random.key(0), **o
  ),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_loss_of_soft_targets_standardises_both_sides(name):
  loss = EVERY[name]
  own, other = (Output(standardized(x.logits)) for x in (S, T))
  found = loss(S, T, standardize=True).total
  np.testing.assert_allclose(found, loss(own, other).total, rtol=1e-5)
  assert abs(found - loss(S, T).total) > 1e-3
