"""The report of predictors: its tree, exits and ensembles, and what it refuses."""

import json

import numpy as np
import pytest

from jaxkd import evaluate
from jaxkd.errors import ConfigError

N, C = 80, 6
FEW = evaluate.Resampling(100)


@pytest.fixture(scope="module")
def case():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, C, N)
  right = 2 * np.eye(C)[labels]
  student, teacher, baseline = (rng.normal(size=(N, C)) + k * right for k in (1, 1.5, 0.5))
  return student, labels, teacher, baseline


@pytest.fixture(scope="module")
def found(case):
  student, labels, teacher, baseline = case
  return evaluate.report(
    student,
    labels,
    teacher,
    baseline_logits=baseline,
    validation=(3 * student, labels),
    class_names=list("abcdef"),
    resampling=FEW,
  )


def test_the_tree_is_json_and_its_numbers_are_those_of_the_functions(case, found):
  student, labels, teacher, baseline = case
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  own = found["predictors"]["student"]
  means = {n: v.mean() for n, v in evaluate.image_scores(student, labels).items()}
  assert {n: own["scores"][n] for n in means} == pytest.approx(means)
  theirs = evaluate.image_scores(teacher, labels)
  for quantity in means:
    gap = own["differences"]["teacher"][quantity]
    assert gap["value"] == pytest.approx(means[quantity] - theirs[quantity].mean())
    assert gap["low"] <= gap["value"] <= gap["high"]
  assert own["fidelity"]["agreement"] == pytest.approx(
    (student.argmax(1) == teacher.argmax(1)).mean()
  )
  base, wrong = baseline.argmax(1), teacher.argmax(1) != labels
  more = own["differences"]["baseline"]["agreement_where_wrong"]["value"]
  same = [(z == teacher.argmax(1))[wrong].mean() for z in (student.argmax(1), base)]
  assert more == pytest.approx(same[0] - same[1])
  ece = [evaluate.equal_mass_reliability(z, labels).error for z in (student, teacher)]
  assert own["differences"]["teacher"]["ece"]["value"] == pytest.approx(ece[0] - ece[1])


def test_per_class_gaps_and_the_temperature(case, found):
  student, labels, teacher, _ = case
  own = found["predictors"]["student"]
  for number, row in enumerate(own["per_class"]):
    chosen = labels == number
    accuracies = [(z.argmax(1) == labels)[chosen].mean() for z in (student, teacher)]
    assert (row["class"], row["images"]) == ("abcdef"[number], chosen.sum())
    assert row["accuracy"] == pytest.approx(accuracies[0])
    assert row["teacher"]["value"] == pytest.approx(accuracies[0] - accuracies[1])
  fitted = evaluate.fit_temperature(3 * student, labels)
  assert own["temperature"]["value"] == pytest.approx(fitted)
  nll = evaluate.image_scores(student / fitted, labels)["nll"].mean()
  assert own["temperature"]["nll"] == pytest.approx(nll)


def test_the_worst_disagreements_come_first_with_both_distributions(case, found):
  student, labels, teacher, _ = case
  kl = evaluate.image_fidelity(student, teacher)["kl"]
  rows = found["worst"]["student"]
  assert [row["image"] for row in rows] == np.argsort(-kl, kind="stable")[:12].tolist()
  first = rows[0]
  p = np.exp(teacher[first["image"]])
  assert first["teacher"] == pytest.approx((p / p.sum())[first["classes"]])
  assert first["label"] == labels[first["image"]]
  assert first["label"] in first["classes"]


def test_exits_and_their_ensemble_are_reported_each(case):
  student, labels, teacher, baseline = case
  exits = np.stack([baseline, student], axis=1)
  found = evaluate.report(exits, labels, teacher, resampling=FEW)
  assert list(found["predictors"]) == ["exit_0", "exit_1", "ensemble"]
  curve = evaluate.anytime_curve(exits, labels, [1, 2])
  accuracies = [entry["scores"]["top1"] for entry in found["predictors"].values()]
  assert accuracies == [
    curve[0]["accuracy"],
    curve[1]["accuracy"],
    curve[1]["ensemble_accuracy"],
  ]
  named = evaluate.report({"peer_0": student, "ensemble": baseline}, labels, resampling=FEW)
  assert list(named["predictors"]) == ["peer_0", "ensemble"]
  assert named["teacher"] is None
  assert named["worst"] == {}


def test_equal_networks_do_not_differ(case):
  student, labels, *_ = case
  found = evaluate.report(student, labels, student, baseline_logits=student, resampling=FEW)
  for gaps in found["predictors"]["student"]["differences"].values():
    assert all(gap == {"value": 0, "low": 0, "high": 0} for gap in gaps.values())


def test_one_image_and_empty_classes_are_noted():
  found = evaluate.report([[1.0, 0.0, 0.0]], [0], [[0.0, 1.0, 0.0]], class_names=["x", "y", "z"])
  assert found["notes"] == [
    "class 'y' has no image here: it has no accuracy and no gap",
    "class 'z' has no image here: it has no accuracy and no gap",
    "one image: differences have no interval",
    "no validation split: no temperature is fitted",
  ]
  own = found["predictors"]["student"]
  assert own["differences"]["teacher"]["top1"] == {"value": 1.0, "low": None, "high": None}
  assert own["per_class"][1] == {"class": "y", "images": 0, "accuracy": None, "teacher": None}
  json.dumps(found, allow_nan=False)


def test_a_teacher_that_is_never_wrong_has_no_errors_to_repeat(case):
  student, labels, *_ = case
  found = evaluate.report(student, labels, 9.0 * np.eye(C)[labels], resampling=FEW)
  fidelity = found["predictors"]["student"]["fidelity"]
  assert (fidelity["agreement_where_wrong"], fidelity["teacher_errors"]) == (None, 0)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"teacher_logits": np.zeros((N, C + 1))}, "teacher_logits: 7 classes, expected 6 as logits"),
    ({"baseline_logits": np.full((N, C), np.nan)}, "baseline_logits: not finite for 80 of 80"),
    ({"class_names": ["a"]}, "class_names: 1 of them, expected 6 as logits have"),
    ({"logits": {}}, "logits: expected at least one predictor, got none"),
    (
      {"logits": {"a": np.zeros((N, C)), "b": np.zeros((N, 2))}},
      r"logits\['b'\]: 2 classes, expected 6 as logits\['a'\]",
    ),
    (
      {"validation": ({"x": np.zeros((2, C))}, [0, 1])},
      r"validation: predictors \['x'\], expected \['student'\]",
    ),
    ({"logits": np.full((N, C), np.inf)}, "logits: not finite for 80 of 80 examples"),
  ],
)
def test_what_does_not_fit_is_one_line(case, change, message):
  given = {"logits": case[0], "labels": case[1], **change}
  with pytest.raises(ConfigError, match=message) as error:
    evaluate.report(**given)
  assert "\n" not in str(error.value)
