"""Several predictions as one network: of several networks, or of the exits of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._numerics import mean_log_probabilities, mean_weights, widen
from jaxkd.models.compose.reused_classifier import needed_variables
from jaxkd.models.layers import separate
from jaxkd.types import Array, Network, Output

_COMBINATIONS = ("probabilities", "logits")


class Ensemble(nn.Module):
  """Several networks' mean prediction.

  The variables are {"params": {"members_NAME": ...}, "batch_stats": ...}.

  Attributes:
    members: name -> `__call__(images, train) -> Output`.
    combine: "probabilities" gives log of the mean of softmax probabilities, "logits" the mean of
      the logits.
    weights: name -> weight in the mean, scaled to sum to 1; None weighs all alike.
  """

  members: Mapping[str, nn.Module]
  combine: str = "probabilities"
  weights: Mapping[str, float] | None = None

  def __call__(self, images: Array, train: bool = False) -> Output:
    """Logits (B, classes), float32 or wider, without features.

    Raises:
      ConfigError: for no members, an unknown way to combine them, or weights that will not do.
    """
    weights = _member_weights(self)
    logits = [member(images, train).logits for member in self.members.values()]
    if self.combine == "probabilities":
      return Output(mean_log_probabilities(logits, weights))
    shares = mean_weights(weights, len(logits))
    first, *rest = (w * z for w, z in zip(shares, widen(*logits), strict=True))
    return Output(sum(rest, start=first))


def ensemble_of(
  networks: Mapping[str, Network],
  *,
  combine: str = "probabilities",
  weights: Mapping[str, float] | None = None,
) -> Network:
  """Several networks as one, that gives their mean prediction.

  Args:
    networks: name -> network, of any architectures and of the same classes.
    combine: as in Ensemble.
    weights: as in Ensemble.

  Returns:
    The Ensemble and its variables, the same arrays, not copies.

  Raises:
    ConfigError: for no networks, an unknown way to combine them, or weights that will not do.
  """
  # Separate copies, because linen would share the variables of one module given twice.
  module = Ensemble(
    {name: separate(network.module) for name, network in networks.items()},
    combine,
    None if weights is None else dict(weights),
  )
  mean_weights(_member_weights(module), len(networks))
  return Network(
    module, nested({f"members_{name}": network.variables for name, network in networks.items()})
  )


class AtExit(nn.Module):
  """A network with several exits, cut after one of them: an ordinary network.

  The variables are {"params": {"network": ...}, ...}, those of all blocks up to that exit with the
  earlier exits' heads, which are not computed under jit. The Output is the exit's; of the deepest
  exit of a MultiExit it has the features of the last block alone (`plain_network` has them all).

  Attributes:
    network: a model with `num_exits` and `run_block` (see MultiExit).
    exit: which, from 0, the shallowest.
  """

  network: nn.Module
  exit: int

  def __call__(self, images: Array, train: bool = False) -> Output:
    """The Output of the exit.

    Raises:
      ConfigError: for an exit out of range.
    """
    _check_exit(self.network, self.exit)
    carry: Any = images
    for block in range(self.exit + 1):
      carry, output = self.network.run_block(carry, block, train)
    return output


def cut_at_exit(
  module: nn.Module,
  variables: Mapping[str, Any],
  exit: int,
  image_shape: tuple[int, int, int],
) -> Network:
  """One exit of a network as an ordinary network, without the variables of what lies deeper.

  Args:
    module: a model with `num_exits` and `run_block` (see MultiExit).
    variables: its Flax variables.
    exit: which, from 0, the shallowest.
    image_shape: (H, W, C) of the images; which variables are needed is found by tracing.

  Returns:
    The AtExit and its variables, the same arrays, not copies.

  Raises:
    ConfigError: for an exit out of range, or variables that are missing or of another shape.
  """
  _check_exit(module, exit)
  cut = AtExit(separate(module), exit)
  return Network(cut, needed_variables(cut, {"network": variables}, image_shape))


class ExitEnsemble(nn.Module):
  """The mean of the probabilities of all exits of a network, or of all branches.

  The variables are {"params": {"network": ...}, ...}.

  Attributes:
    network: `__call__(images, train) -> tuple of Outputs`.
  """

  network: nn.Module

  def __call__(self, images: Array, train: bool = False) -> Output:
    """Logits (B, classes), log of the mean probabilities, float32 or wider, without features."""
    outputs = self.network(images, train)
    return Output(mean_log_probabilities([output.logits for output in outputs]))


def exit_ensemble(module: nn.Module, variables: Mapping[str, Any]) -> Network:
  """The ExitEnsemble of a network with several exits or branches, and its variables."""
  return Network(ExitEnsemble(separate(module)), nested({"network": variables}))


def exits_inside(ensemble: Network) -> Network:
  """The network whose exits an `exit_ensemble` averages, with its variables.

  Raises:
    ConfigError: if it is another network, or one of branches.
  """
  module = ensemble.module
  if not isinstance(module, ExitEnsemble) or not hasattr(module.network, "run_block"):
    raise ConfigError(f"a {type(module).__name__}, expected an ensemble of one network's exits")
  variables = {c: tree["network"] for c, tree in ensemble.variables.items() if "network" in tree}
  return Network(module.network, variables)


def _member_weights(module: Ensemble) -> list[float] | None:
  """The weights in the order of the members; None if there are none."""
  if module.combine not in _COMBINATIONS:
    raise unknown_name("way to combine an ensemble", module.combine, _COMBINATIONS)
  if not module.members:
    raise ConfigError("an ensemble needs at least one member")
  if module.weights is None:
    return None
  if set(module.weights) != set(module.members):
    raise ConfigError(
      f"weights are for {sorted(module.weights)}: the members are {sorted(module.members)}"
    )
  return [module.weights[name] for name in module.members]


def _check_exit(network: Any, exit: int) -> None:
  for name in ("num_exits", "run_block"):
    if not hasattr(network, name):
      raise ConfigError(f"a {type(network).__name__} has no exits to be cut at: no {name}")
  if not 0 <= exit < network.num_exits:
    raise ConfigError(f"exit {exit}: there are exits 0 to {network.num_exits - 1}")


def nested(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """{part: {collection: tree}} -> {collection: {part: tree}}."""
  collections = {collection for variables in parts.values() for collection in variables}
  return {
    collection: {
      part: variables[collection] for part, variables in parts.items() if collection in variables
    }
    for collection in sorted(collections)
  }
