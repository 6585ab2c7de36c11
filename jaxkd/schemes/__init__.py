"""Who learns from whom, and does the teacher learn too: schemes for `jaxkd.train`."""

from jaxkd.schemes.autoencoder import autoencoder
from jaxkd.schemes.distillation import Distillation
from jaxkd.schemes.offline import offline
from jaxkd.schemes.ramps import RAMPS, ramp
from jaxkd.schemes.sequential import fresh_classifier
from jaxkd.schemes.simkd import simkd
from jaxkd.schemes.supervised import supervised

__all__ = [
  "RAMPS",
  "Distillation",
  "autoencoder",
  "fresh_classifier",
  "offline",
  "ramp",
  "simkd",
  "supervised",
]
