"""Rows of channel-wise distillation (CWD)."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.dense import cwd
from tests.rows._counted import kernel, of_outputs
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject, of_logits, of_maps

_MAPS = ((B, 4, 4, 3), (B, 2, 2, 3))
_MSE = {"divergence": "mse", "temperature": 1.0}

SUBJECTS = {
  "channel_wise": Subject(of_maps(losses.channel_wise), *_MAPS),
  "channel_wise_logits": Subject(
    of_logits(losses.channel_wise, norm="spatial"), (B, 2, 2, 3), (B, 2, 2, 3), long=True
  ),
  **{
    f"channel_wise_{norm}_mse": Subject(
      of_maps(losses.channel_wise, norm=norm, **_MSE), *_MAPS, long=True
    )
    for norm in ("channel", "spatial", "channel_mean", "none")
  },
}

COUNTED = [
  kernel("channel_divergence", (4, 4, 3), (2, 2, 3)),
  kernel("channel_divergence", (2, 2, 3), (2, 2, 3), norm="spatial", temperature=2.0),
  of_outputs("channel_wise", (2, 2, 3), (2, 2, 3)),
]

CALLS = {"channel_wise": lambda s, t: losses.channel_wise(s, t, stages=("stage3",))}

BEHIND_A_NETWORK = {
  "channel_wise": of(losses.channel_wise, stages=BOTH),
  "channel_wise spatial": of(losses.channel_wise, stages=BOTH, norm="spatial"),
  "channel_wise mse": of(losses.channel_wise, stages=BOTH, **_MSE),
}

MUTATIONS = [
  Mutation(
    "CWD's squared temperature dropped",
    "cwd.py",
    "return temperature * temperature * relative_entropy(*logs)",
    "return relative_entropy(*logs)",
    "test_cwd.py",
    "cwd",
  ),
  Mutation(
    "CWD's softmax over channels, not over positions",
    "cwd.py",
    'if norm == "spatial":',
    'if norm in ("spatial", "channel"):',
    "test_cwd.py",
    "cwd",
  ),
  Mutation(
    "CWD's padded positions in the softmax",
    "cwd.py",
    "(jnp.where(pixels, x, -jnp.inf) for x in (student, teacher))",
    "(jnp.where(pixels, x, 0.0) for x in (student, teacher))",
    "test_cwd.py",
    "",
  ),
]

GOLDEN = {"cwd": cwd}

RECORDED = ("cwd/divergence='mse'/temperature=1.0", "cwd/norm='spatial'")
