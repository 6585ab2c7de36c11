"""Training of any scheme: the step, phases, checkpoints. Contains no method by name."""

from jaxkd.train.expected import Expected
from jaxkd.train.loop import Finished, TrainOptions, train_phase
from jaxkd.train.nonfinite import Diverged, NonFinite
from jaxkd.train.optimizers import learning_rate_schedule, make_optimizer, take_turns
from jaxkd.train.phase import Phase, check_phases, starting_variables, steps_per_epoch
from jaxkd.train.reporting import Reporter, Reporters, Silent
from jaxkd.train.sequence import train_phases
from jaxkd.train.state import TrainState, create_state
from jaxkd.train.step import evaluation_step, training_step

__all__ = [
  "Diverged",
  "Expected",
  "Finished",
  "NonFinite",
  "Phase",
  "Reporter",
  "Reporters",
  "Silent",
  "TrainOptions",
  "TrainState",
  "check_phases",
  "create_state",
  "evaluation_step",
  "learning_rate_schedule",
  "make_optimizer",
  "starting_variables",
  "steps_per_epoch",
  "take_turns",
  "train_phase",
  "train_phases",
  "training_step",
]
