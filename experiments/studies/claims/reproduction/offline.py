"""Claims about students of a trained teacher."""

from __future__ import annotations

import itertools
import math
import statistics

import jax.numpy as jnp

from jaxkd.losses import soft_target_kl
from reproduction import features
from reproduction.costs import cost
from reproduction.results import FASHION, Claim, Row, Runs, exact, paired, summary

NAMES = {
  "fitnets": "FitNets",
  "at": "attention transfer (activations)",
  "gradient_at": "attention transfer (gradients)",
  "nst": "NST",
  "ft": "factor transfer",
  "ab": "activation boundaries",
  "fsp": "FSP",
  "rkd": "RKD",
}


def _softmax(runs: Runs) -> list[Row]:
  del runs
  rows = []
  for temperature, stated in ((1.0, 0.982), (4.0, 0.731), (10.0, 0.599)):
    # Against a teacher that is certain, the divergence is minus the logarithm of the probability.
    divergence = soft_target_kl(
      jnp.array([[4.0, 0.0]]),
      jnp.array([[1e4, 0.0]]),
      temperature=temperature,
      squared_temperature=False,
    )
    found = math.exp(-float(divergence))
    rows.append(
      exact(
        f"T={temperature:g}: half of the last digit - distance of {found:.4f} from {stated}",
        0.0005 - abs(found - stated),
        unit="probability",
      )
    )
  return rows


def _kd(runs: Runs) -> list[Row]:
  alone = runs.accuracies(FASHION, "alone")
  at = {t: runs.accuracies(FASHION, f"kd_t{t}") for t in runs.constants.TEMPERATURES}
  first = min(at)
  gains = [paired(f"KD at T={t} - student alone", values, alone) for t, values in at.items()]
  effects = [
    paired(f"KD at T={t} - KD at T={first}", values, at[first])
    for t, values in at.items()
    if t != first
  ]
  return gains + effects


def _features(runs: Runs) -> list[Row]:
  alone = runs.accuracies(FASHION, "alone")
  return [
    paired(f"{name} - student alone", runs.accuracies(FASHION, run), alone)
    for run, name in NAMES.items()
  ]


def _simkd(runs: Runs) -> list[Row]:
  simkd, kd = runs.accuracies(FASHION, "simkd"), runs.accuracies(FASHION, runs.constants.KD)
  rows = [paired(f"SimKD - KD ({_temperature(runs)})", simkd, kd)]
  rows += [
    paired(f"SimKD - {name}", simkd, runs.accuracies(FASHION, run)) for run, name in NAMES.items()
  ]
  teacher = summary(runs.teacher)["stages"]["teacher"]["accuracy"]
  gap = teacher - statistics.mean(runs.accuracies(FASHION, "alone"))
  rows.append(
    paired(
      "share of the gap from the student alone to the teacher: SimKD's - KD's",
      [x / gap for x in simkd],
      [x / gap for x in kd],
      unit="% of the gap",
      note=f"the gap is {100 * gap:.2f} points",
    )
  )
  return rows


def _temperature(runs: Runs) -> str:
  return f"T={runs.constants.KD.removeprefix('kd_t')}"


def _distances(runs: Runs) -> list[Row]:
  kd = features.distances(runs, runs.constants.KD, fitted=True)
  simkd = features.distances(runs, "simkd")
  note = "KD's features are mapped linearly first, as well as its training images allow"
  return [
    paired(
      f"{meaning}: KD's ({_temperature(runs)}) - SimKD's",
      [float(each[kind].mean()) for each in kd],
      [float(each[kind].mean()) for each in simkd],
      unit=unit,
      scale=1.0,
      note=note,
    )
    for kind, meaning, unit in (
      ("cosine", "1 - cosine between student's and teacher's features", "1 - cosine"),
      ("l2", "distance over the length of the teacher's feature", "relative distance"),
    )
  ]


def _classifiers(runs: Runs) -> list[Row]:
  simkd = runs.accuracies(FASHION, "simkd")
  return [
    paired(f"SimKD - {name}", simkd, runs.accuracies(FASHION, run))
    for run, name in (
      ("joint", "classifier trained along with the encoder"),
      ("sequential", "classifier trained afterwards"),
    )
  ]


def _variants(runs: Runs) -> list[Row]:
  *poorer, best = runs.constants.LAYOUTS
  layouts = {layout: f"simkd_{layout}" for layout in poorer} | {best: "simkd"}
  pairs = [("SimKD+", "simkd+", "SimKD", "simkd"), ("SimKD++", "simkd++", "SimKD", "simkd")]
  names = list(layouts)
  pairs += [
    (f"projector {better}", layouts[better], worse, layouts[worse])
    for worse, better in itertools.pairwise(names)
  ]
  pairs.append(("projector reduced by 2", "simkd", "by 8", "simkd_r8"))
  return [
    paired(
      f"{better} - {worse}",
      runs.accuracies(FASHION, ours),
      runs.accuracies(FASHION, theirs),
      note=f"{cost(runs, FASHION, ours)}; {worse}: {cost(runs, FASHION, theirs)}",
    )
    for better, ours, worse, theirs in pairs
  ]


CLAIMS = (
  Claim(
    1,
    "A softmax gets softer with its temperature: of two logits 4 apart, the larger one's "
    "probability is 0.982, at T=4 0.731, at T=10 0.599.",
    "the lecture notes' worked example",
    (),
    _softmax,
  ),
  Claim(
    2,
    "A student of KD is better than the student alone; a higher temperature than 1 helps.",
    "Hinton et al., 2015",
    (FASHION,),
    _kd,
  ),
  Claim(
    3,
    "Matching features helps: each method is better than the student alone.",
    "Romero et al., 2015; Zagoruyko and Komodakis, 2017; Huang and Wang, 2017; Kim et al., 2018; "
    "Heo et al., 2019; Yim et al., 2017; Park et al., 2019",
    (FASHION,),
    _features,
  ),
  Claim(
    4,
    "SimKD is at least as good as every other offline method, and closes more of the gap to the "
    "teacher than KD.",
    "Chen et al., 2022",
    (FASHION,),
    _simkd,
  ),
  Claim(
    5,
    "After SimKD a student's features are closer to the teacher's than after KD.",
    "Chen et al., 2022",
    (FASHION,),
    _distances,
  ),
  Claim(
    6,
    "Reusing the teacher's classifier is better than training one along with the encoder, or "
    "after it.",
    "Chen et al., 2022",
    (FASHION,),
    _classifiers,
  ),
  Claim(
    7,
    "Reusing more of the teacher (SimKD+, SimKD++) is at least as good as SimKD, and a richer "
    "projector as a poorer one.",
    "Chen et al., 2022",
    (FASHION,),
    _variants,
  ),
)
