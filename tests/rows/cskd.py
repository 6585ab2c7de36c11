"""Rows of CS-KD."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.cskd import cskd
from tests.rows._mutation import Mutation
from tests.rows._networked import of_logits as networked_logits
from tests.rows._subject import B, Subject, of_logits

SUBJECTS = {"class_wise": Subject(of_logits(losses.class_wise), (B, 5), (B, 5))}

BEHIND_A_NETWORK = {"class_wise": networked_logits(losses.class_wise)}

MUTATIONS = [
  Mutation(
    "CS-KD's pairs exchanged",
    "cskd.py",
    """      logits_of(student, what="class_wise", role="student"),
      logits_of(partner, what="class_wise", role="partner"),
""",
    """      logits_of(partner, what="class_wise", role="partner"),
      logits_of(student, what="class_wise", role="student"),
""",
    "test_cskd.py",
    "cskd",
  ),
  Mutation(
    "CS-KD without its temperature",
    "cskd.py",
    "      temperature=temperature,\n",
    "      temperature=1.0,\n",
    "test_cskd.py",
    "cskd",
  ),
  Mutation(
    "CS-KD always with T^2",
    "cskd.py",
    "      squared_temperature=squared_temperature,\n",
    "      squared_temperature=True,\n",
    "test_cskd.py",
    "",
  ),
]

GOLDEN = {"cskd": cskd}
