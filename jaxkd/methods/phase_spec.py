"""`PhaseSpec`, one phase of a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from jaxkd.types import Scheme


@dataclasses.dataclass(frozen=True)
class PhaseSpec:
  """One phase of a method; `jaxkd.experiment.build` adds data and an optimizer.

  Attributes:
    name: name of the phase.
    scheme: participants and losses.
    inherit: participant -> "phase/participant" of an earlier phase, teachers included.
    epochs: passes over the student's examples; None takes the student's number.
    learning_rate: None takes the student's.
    reported: predictor whose accuracy is reported; "" if the scheme has no predictor.
    label: name of the trained network in tables; "" takes the student's name.
    reuses_classifier: whether the student predicts through the teachers' classifiers.
    gives: participant of the method's next phase -> participant of this phase that initialises it.
    turns: participants that are updated one per step, in this order; empty updates all.
    augmentations: names of `Batch.views` with the same inputs in an augmentation of their own.
    partners: names of `Batch.views` with the inputs of another example of the same class.
    strong: names of `Batch.views` with the same inputs, strongly augmented (`jaxkd.data.strong`).
    seed_offset: added to the experiment's seed, for networks that must start differently.
    notes: lines shown before the phase starts, such as the compared stages.
    role: "student" for the result, "baseline" for the student that it is compared with,
      "" for a preparation.
  """

  name: str
  scheme: Scheme
  inherit: Mapping[str, str] = dataclasses.field(default_factory=dict)
  epochs: int | None = None
  learning_rate: float | None = None
  reported: str = "student"
  label: str = ""
  reuses_classifier: bool = False
  gives: Mapping[str, str] = dataclasses.field(default_factory=dict)
  turns: tuple[str, ...] = ()
  augmentations: tuple[str, ...] = ()
  partners: tuple[str, ...] = ()
  strong: tuple[str, ...] = ()
  seed_offset: int = 0
  notes: tuple[str, ...] = ()
  role: Literal["teacher", "student", "baseline", ""] = "student"
