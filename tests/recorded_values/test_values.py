"""Objectives, terms and gradients of methods on fixed weights equal the recorded values.

`python -m tests.recorded_values.record` records anew, where a change is meant.
"""

import jax
import pytest

from jaxkd.errors import ConfigError
from tests.recorded_values import compute
from tests.recorded_values.cases import (
  OFTEN,
  OTHERS,
  PAIRS,
  QUICK,
  REFUSED,
  SHARED,
  WITH_SHARED,
  methods,
  schemes_of,
)

RECORDED = compute.recorded()
CASES = [(v, p) for p in PAIRS for v in (*OFTEN, *OTHERS) if (v, p) not in REFUSED]


@pytest.fixture(autouse=True)
def on_the_cpu():
  if jax.default_backend() != "cpu":
    pytest.skip("the values are those of a CPU")


def assert_as_recorded(variant, pair, record_property):
  without = () if variant in WITH_SHARED else SHARED
  key = compute.key_of(variant, pair)
  found = compute.values_of(variant, pair, without=without)
  wanted = {name: values for name, values in RECORDED[key].items() if name not in without}
  assert found
  record_property("recorded values", (key, compute.largest(found, wanted)))
  assert not compute.too_large(found, wanted)


def test_every_method_is_recorded():
  assert {part for variant in OFTEN for part in variant.split("/")[0].split("+")} == methods()
  assert set(RECORDED) == {compute.key_of(*case) for case in CASES}


@pytest.mark.parametrize("variant", QUICK)
def test_a_method_computes_what_was_recorded(variant, record_property):
  assert_as_recorded(variant, "resnets", record_property)


@pytest.mark.long
@pytest.mark.parametrize(("variant", "pair"), CASES)
def test_every_phase_computes_what_was_recorded(variant, pair, record_property):
  assert_as_recorded(variant, pair, record_property)


@pytest.mark.parametrize(("variant", "pair"), REFUSED)
def test_an_unrecorded_case_is_refused(variant, pair):
  with pytest.raises(ConfigError, match=REFUSED[variant, pair]):
    schemes_of(variant, PAIRS[pair])


def test_a_difference_is_reported():
  wanted = {"alone": {"loss": 1.0, "terms": {"labels": {"logit": 1.0}}, "gradients": {"one": 2.0}}}
  assert not compute.too_large(wanted, wanted)
  near = {**wanted["alone"], "loss": 1.0 + 5e-7}
  assert not compute.too_large({"alone": near}, wanted)
  for other in (
    {**near, "loss": 1.0 + 2e-6},
    {**near, "loss": float("nan")},
    {**near, "gradients": {"one": 2.0001}},
    {**near, "gradients": {"two": 2.0}},
    {**near, "terms": {"labels": {"logit": 1.0, "feature": 0.0}}},
  ):
    assert compute.too_large({"alone": other}, wanted)


def test_renamed_participants_keep_their_weights(monkeypatch):
  monkeypatch.setattr(
    compute, "RENAMED", {"first": "peer_0", "first/params/out": "peer_0/params/c"}
  )
  for path, old in (
    ("first/params/stem", "peer_0/params/stem"),
    ("first/params/out/kernel", "peer_0/params/c/kernel"),
    ("first_one/params/stem", "first_one/params/stem"),
  ):
    assert compute.recorded_path(path) == old
