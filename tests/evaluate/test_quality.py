"""Scores of images, classes and coverage; fidelity; CKA; bootstrap: against numpy loops."""

import numpy as np
import pytest

from jaxkd import evaluate
from jaxkd.errors import ConfigError

N, C = 60, 7


@pytest.fixture(scope="module")
def case():
  rng = np.random.default_rng(1)
  labels = rng.integers(0, C, N)
  logits, teacher = (2 * rng.normal(size=(N, C)) + 2 * np.eye(C)[labels] for _ in range(2))
  return logits, teacher, labels


def softmax(logits):
  return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_image_scores_are_those_of_the_definitions(case):
  logits, _, labels = case
  found = evaluate.image_scores(logits, labels)
  for n, (z, y) in enumerate(zip(logits, labels, strict=True)):
    p = softmax(z)
    assert found["top1"][n] == (z.argmax() == y)
    assert found["top5"][n] == (y in np.argsort(-z)[:5])
    assert found["nll"][n] == pytest.approx(-np.log(p[y]))
    assert found["brier"][n] == pytest.approx(sum((p[c] - (c == y)) ** 2 for c in range(C)))


def test_equal_logits_rank_by_class_number_as_argmax_does():
  logits = np.zeros((C, C))
  found = evaluate.image_scores(logits, np.arange(C))
  assert found["top1"].tolist() == [1, 0, 0, 0, 0, 0, 0]
  assert found["top5"].tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_confusion_and_class_accuracy(case):
  logits, _, labels = case
  counts = evaluate.confusion_matrix(logits, labels)
  predicted = logits.argmax(1)
  for y in range(C):
    for p in range(C):
      assert counts[y, p] == ((labels == y) & (predicted == p)).sum()
  found = evaluate.class_accuracy(logits, labels)
  for y in range(C):
    assert found[y] == pytest.approx((predicted == y)[labels == y].mean())


def test_selective_accuracy_takes_the_most_confident_and_the_mean_of_ties(case):
  logits, _, labels = case
  order = np.argsort(-softmax(logits).max(1))
  correct = (logits.argmax(1) == labels)[order]
  found = evaluate.selective_accuracy(logits, labels, [0.1, 0.35, 1.0])
  assert found == pytest.approx([correct[:6].mean(), correct[:21].mean(), correct.mean()])
  tied = np.array([[1.0, 0.0]] * 4)
  for labels in ([0, 0, 1, 1], [1, 1, 0, 0]):
    assert evaluate.selective_accuracy(tied, labels, [0.25, 1.0]).tolist() == [0.5, 0.5]
  with pytest.raises(ConfigError, match=r"coverages=\[0\]: expected numbers above 0"):
    evaluate.selective_accuracy(tied, labels, [0])


def test_fidelity_is_that_of_the_definitions(case):
  logits, teacher, labels = case
  found = evaluate.image_fidelity(logits, teacher)
  p, q = softmax(teacher), softmax(logits)
  np.testing.assert_allclose(found["kl"], (p * np.log(p / q)).sum(1), rtol=1e-9)
  np.testing.assert_array_equal(found["agreement"], logits.argmax(1) == teacher.argmax(1))
  wrong = teacher.argmax(1) != labels
  share, count = evaluate.agreement_where_wrong(logits, teacher, labels)
  assert count == wrong.sum() > 0
  assert share == pytest.approx((logits.argmax(1) == teacher.argmax(1))[wrong].mean())
  perfect = 9.0 * np.eye(C)[labels]
  assert np.isnan(evaluate.agreement_where_wrong(logits, perfect, labels)[0])
  assert (evaluate.image_fidelity(logits, logits + 5)["kl"] < 1e-12).all()


def test_one_image_and_an_empty_class():
  logits = np.array([[1.0, 0.0, -1.0]])
  assert evaluate.image_scores(logits, [0])["top1"].tolist() == [1]
  assert evaluate.selective_accuracy(logits, [0]).tolist() == [1.0] * 10
  found = evaluate.class_accuracy(logits, [0])
  assert found[0] == 1
  assert np.isnan(found[1:]).all()
  assert evaluate.equal_mass_reliability(logits, [0]).images.tolist() == [1]


@pytest.mark.parametrize(
  ("logits", "labels", "message"),
  [
    ([[0.0, np.nan], [0.0, 1.0]], [0, 1], "logits: not finite for 1 of 2 examples, the first is"),
    ([[0.0, -np.inf]], [0], "logits: not finite for 1 of 1 examples, the first is number 0"),
    ([[0.0, 1.0]], [2], "labels: 2 is no class: logits have classes 0 to 1"),
    ([[0.0, 1.0]], [0, 1], r"labels: shape \(2,\), expected \(1,\)"),
    ([[0.0, 1.0]], [0.5], "labels: type float64, expected integers"),
    (np.zeros((0, 2)), [], r"logits: shape \(0, 2\), expected \(examples, classes\), at least one"),
  ],
)
def test_what_cannot_be_scored_is_one_line(logits, labels, message):
  with pytest.raises(ConfigError, match=message) as error:
    evaluate.image_scores(logits, np.asarray(labels))
  assert "\n" not in str(error.value)


def test_a_teacher_of_other_classes_is_named():
  with pytest.raises(ConfigError, match="teacher_logits: 3 classes, expected 2 as logits have"):
    evaluate.image_fidelity(np.zeros((4, 2)), np.zeros((4, 3)))
  with pytest.raises(ConfigError, match="teacher_logits: 5 examples, expected 4 as logits have"):
    evaluate.image_fidelity(np.zeros((4, 2)), np.zeros((5, 2)))


def test_cka_is_that_of_the_definition_and_near_zero_for_independent_features():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 4))
  y[:, 0] += x[:, 0]
  xc, yc = x - x.mean(0), y - y.mean(0)
  norm = np.linalg.norm
  plain = norm(xc.T @ yc) ** 2 / (norm(xc.T @ xc) * norm(yc.T @ yc))
  assert evaluate.linear_cka(x, y, debiased=False) == pytest.approx(plain)
  rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
  assert evaluate.linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
  wide = [rng.normal(size=(20, 50, 40)) for _ in range(2)]
  assert evaluate.linear_cka(*wide, debiased=False) > 0.9
  assert abs(evaluate.linear_cka(*wide)) < 0.1


def test_unbiased_hsic_is_the_mean_over_distinct_quadruples():
  rng = np.random.default_rng(2)
  x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))

  def hsic(a, b):
    k, m, total, count = a @ a.T, b @ b.T, 0.0, 0
    for i in range(5):
      for j in range(5):
        for q in range(5):
          for r in range(5):
            if len({i, j, q, r}) == 4:
              total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
              count += 1
    return total / count

  wanted = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
  assert evaluate.linear_cka(x, y) == pytest.approx(wanted)


def test_cka_of_constant_features_is_nan_and_too_few_examples_are_refused():
  x = np.random.default_rng(0).normal(size=(6, 3))
  assert np.isnan(evaluate.linear_cka(x, np.full((6, 2), 0.1)))
  with pytest.raises(ConfigError, match="ours: 3 examples, expected at least 4"):
    evaluate.linear_cka(x[:3], x[:3])
  with pytest.raises(ConfigError, match="theirs: 5 examples, expected 6 as ours"):
    evaluate.linear_cka(x, x[:5])
  with pytest.raises(ConfigError, match="theirs: features are not finite"):
    evaluate.linear_cka(x, x * np.nan)


def test_bootstrap_is_paired_and_agrees_with_the_normal_interval():
  rng = np.random.default_rng(3)
  theirs = rng.normal(size=(2, 400))
  ours = theirs + np.array([[0.0], [0.5]]) + 0.1 * rng.normal(size=(2, 400))
  none, some = evaluate.paired_means(ours, theirs)
  assert none.low < 0 < none.high
  gap = ours[1] - theirs[1]
  reach = 1.96 * gap.std() / 20
  assert some.value == pytest.approx(gap.mean())
  assert (some.low, some.high) == pytest.approx((gap.mean() - reach, gap.mean() + reach), abs=2e-3)
  mean = evaluate.paired_statistic(lambda x, n: float(x[n].mean()), ours[1], theirs[1], 400)
  assert mean == pytest.approx(some)
  assert evaluate.paired_means(ours, ours)[0] == (0, 0, 0)


def test_bootstrap_refuses_what_has_no_interval():
  with pytest.raises(ConfigError, match="an interval needs at least two, got 1"):
    evaluate.paired_means([[1.0]], [[0.0]])
  with pytest.raises(ConfigError, match="samples=5: expected at least 100"):
    evaluate.paired_means([[1.0, 2.0]], [[0.0, 0.0]], evaluate.Resampling(5))
  with pytest.raises(ConfigError, match="level=1: expected a number between 0 and 1"):
    evaluate.paired_means([[1.0, 2.0]], [[0.0, 0.0]], evaluate.Resampling(level=1))
  with pytest.raises(ConfigError, match="not finite"):
    evaluate.paired_means([[1.0, np.nan]], [[0.0, 0.0]])
