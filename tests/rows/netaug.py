"""Rows of NetAug."""

from __future__ import annotations

from tests.golden_adapters.netaug import netaug
from tests.rows._mutation import Mutation

GOLDEN = {"netaug": netaug}

REFUSED = {("netaug", "vit-vgg"): "trains a CifarResNet or a MobileNetV2"}

MUTATIONS = [
  Mutation(
    "one channel more than drawn in NetAug",
    "models/compose/channels.py",
    "jnp.arange(y.shape[-1]) < count",
    "jnp.arange(y.shape[-1]) <= count",
    "methods/test_netaug.py",
    "netaug",
  ),
  Mutation(
    "NetAug's residual blocks with widths of their own",
    "models/compose/widened.py",
    "number if block.residual else drawn",
    "drawn",
    "methods/test_netaug.py",
    "",
  ),
  Mutation(
    "the network of NetAug has unsorted channels",
    "methods/netaug.py",
    "run(network.base, network.own(ordered),",
    "run(network.base, network.own(kept),",
    "methods/test_netaug.py",
    "",
  ),
  Mutation(
    "NetAug's importance without magnitudes",
    "models/compose/channels.py",
    "jnp.sum(jnp.abs(kernel),",
    "jnp.sum(kernel,",
    "methods/test_netaug.py",
    "",
  ),
]
