"""The stages that "auto" compares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.methods._stages import inner_stages, last_stages, paired_stages


def network(*sizes, vectors=0):
  """Shapes of a network whose stages have these sizes, or of hidden layers without a place."""
  shapes = {"stem": (2, 32, 32, 3)} if sizes else {}
  shapes |= {f"stage{i}": (2, n, n, 8 * i) for i, n in enumerate(sizes, start=1)}
  shapes |= {f"stage{i}": (2, 16) for i in range(1, vectors + 1)}
  return {**shapes, "pooled": (2, 16)}


def places(pairs):
  return [(int(ours[-1]), int(theirs[-1])) for ours, theirs in pairs]


@pytest.mark.parametrize(
  ("student", "teacher", "expected"),
  [
    # As many of each: in their order, whatever the sizes, as the published code pairs them.
    ((32, 16, 8), (32, 16, 8), [(1, 1), (2, 2), (3, 3)]),
    ((16, 8, 4), (32, 16, 8), [(1, 1), (2, 2), (3, 3)]),
    ((7, 7, 7), (28, 14, 7), [(1, 1), (2, 2), (3, 3)]),
    # MobileNetV2 from a ResNet of three stages, and the reverse.
    ((16, 8, 4, 2), (32, 16, 8), [(1, 2), (2, 3)]),
    ((32, 16, 8), (16, 8, 4, 2), [(2, 1), (3, 2)]),
    # Of two stages of one size, the deeper.
    ((32, 16, 8), (16, 8, 8, 4), [(2, 1), (3, 3)]),
    ((28, 14, 7), (7, 7), [(3, 2)]),
    # No size in common: the nearest, in order.
    ((28, 14, 7), (10, 4), [(2, 1), (3, 2)]),
    ((10,), (28, 14, 7), [(1, 2)]),
    ((9, 9, 9), (8, 8), [(2, 1), (3, 2)]),
  ],
)
def test_stages_between_the_ends_are_paired(student, teacher, expected):
  assert places(paired_stages(network(*student), network(*teacher))) == expected


@given(
  st.lists(st.integers(1, 16), min_size=1, max_size=4).map(lambda x: sorted(x, reverse=True)),
  st.lists(st.integers(1, 16), min_size=1, max_size=4).map(lambda x: sorted(x, reverse=True)),
)
def test_pairs_keep_the_order_and_use_no_stage_twice(student, teacher):
  pairs = places(paired_stages(network(*student), network(*teacher)))
  ours, theirs = zip(*pairs, strict=True)
  assert list(ours) == sorted(set(ours)) and list(theirs) == sorted(set(theirs))
  if len(student) != len(teacher) and set(student) & set(teacher):
    assert all(student[i - 1] == teacher[j - 1] for i, j in pairs)
    assert len(pairs) == len(set(student) & set(teacher))
  else:
    assert len(pairs) == min(len(student), len(teacher))


def test_vectors_are_paired_only_if_accepted():
  images, flat = network(8, 4), network(vectors=3)
  for student, teacher in ((images, flat), (flat, images)):
    assert paired_stages(student, teacher, vectors=True) == (("pooled", "pooled"),)
    with pytest.raises(
      ConfigError, match=r"has no feature maps .*: it gives stage1 \(16,\), stage2"
    ):
      paired_stages(student, teacher)
  # The deepest layers belong together.
  two = network(vectors=2)
  assert places(paired_stages(two, flat, vectors=True)) == [(1, 2), (2, 3)]


def test_the_last_stage_is_the_one_before_pooling():
  images, flat = network(8, 4), network(vectors=3)
  assert last_stages(images, network(16, 8, 4)) == ("stage2", "stage3")
  assert last_stages(images, flat, vectors=True) == ("stage2", "stage3")
  assert last_stages(flat, flat, vectors=True) == ("stage3", "stage3")
  # A vector has no place that a map could be made from.
  with pytest.raises(ConfigError, match="the student has no feature maps"):
    last_stages(flat, images, vectors=True)


def test_inner_stages_exclude_stem_and_pooled():
  assert inner_stages(network(8, 4)) == ("stage1", "stage2")
  assert inner_stages(network(vectors=1)) == ("stage1",)
  assert inner_stages({"pooled": (2, 16)}) == ("pooled",)
