"""Who learns from whom, and does the teacher learn too: schemes for `jaxkd.train`."""

from jaxkd.schemes.autoencoder import autoencoder
from jaxkd.schemes.born_again import born_again
from jaxkd.schemes.distillation import Distillation
from jaxkd.schemes.exits import AdaptiveTemperature, multi_exit
from jaxkd.schemes.mutual import mutual
from jaxkd.schemes.native_ensemble import native_ensemble
from jaxkd.schemes.offline import offline
from jaxkd.schemes.ramps import RAMPS, ramp
from jaxkd.schemes.sequential import fresh_classifier
from jaxkd.schemes.simkd import simkd
from jaxkd.schemes.supervised import supervised

__all__ = [
  "RAMPS",
  "AdaptiveTemperature",
  "Distillation",
  "autoencoder",
  "born_again",
  "fresh_classifier",
  "multi_exit",
  "mutual",
  "native_ensemble",
  "offline",
  "ramp",
  "simkd",
  "supervised",
]
