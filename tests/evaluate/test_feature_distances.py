import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.evaluate import feature_distances

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 6, 5))


def test_distances_are_cosine_and_l2_relative_to_the_teacher():
  found = feature_distances(STUDENT, TEACHER)
  for n, (s, t) in enumerate(zip(STUDENT, TEACHER, strict=True)):
    length = np.sqrt(t @ t)
    assert found["cosine"][n] == pytest.approx(1 - s @ t / (np.sqrt(s @ s) * length))
    assert found["l2"][n] == pytest.approx(np.sqrt((s - t) @ (s - t)) / length)


def test_length_changes_l2_but_not_cosine():
  found = feature_distances(3 * TEACHER, TEACHER)
  np.testing.assert_allclose(found["cosine"], 0, atol=1e-15)
  np.testing.assert_allclose(found["l2"], 2)
  np.testing.assert_allclose(feature_distances(-TEACHER, TEACHER)["cosine"], 2)


def test_small_angles_are_not_rounded_away():
  angle = 1e-9
  found = feature_distances([[np.cos(angle), np.sin(angle)]], [[1.0, 0.0]])
  assert found["cosine"][0] == pytest.approx(angle**2 / 2, rel=1e-6)


def test_zero_vectors_have_finite_distances():
  zero, one = np.zeros(3), np.ones(3)
  found = feature_distances(np.stack([zero, one, zero]), np.stack([one, zero, zero]))
  assert found["cosine"].tolist() == found["l2"].tolist() == [1, 1, 0]


def test_half_precision_is_computed_in_float64():
  found = feature_distances(STUDENT.astype(np.float16), TEACHER.astype(np.float16))
  expected = feature_distances(STUDENT, TEACHER)
  for name, distances in found.items():
    assert distances.dtype == np.float64
    np.testing.assert_allclose(distances, expected[name], rtol=5e-3)


@pytest.mark.parametrize(
  ("student", "teacher", "message"),
  [
    (STUDENT[0], TEACHER[0], r"^student: shape \(5,\)"),
    (STUDENT[..., None], TEACHER, r"^student: shape \(6, 5, 1\)"),
    (STUDENT, TEACHER[:1], r"^teacher: shape \(1, 5\), expected \(6, 5\)"),
  ],
)
def test_errors_name_shapes_that_do_not_fit(student, teacher, message):
  with pytest.raises(ConfigError, match=message):
    feature_distances(student, teacher)
