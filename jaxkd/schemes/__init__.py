"""Who learns from whom, and does the teacher learn too: schemes for `jaxkd.train`."""

from jaxkd.schemes.offline import Distillation, offline
from jaxkd.schemes.simkd import simkd
from jaxkd.schemes.supervised import supervised

__all__ = ["Distillation", "offline", "simkd", "supervised"]
