"""Networks that combine predictions: of several networks, or of the exits of one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._numerics import mean_log_probabilities, mean_weights, widen
from jaxkd.models.compose.parts import merge_variables, needed_variables, separate
from jaxkd.shapes import InputShape
from jaxkd.types import Array, Network, Output

_COMBINATIONS = ("probabilities", "logits")


class Ensemble(nn.Module):
  """The mean prediction of several networks.

  The variables are {"params": {"members_NAME": ...}, "batch_stats": ...}.

  Attributes:
    members: name -> `__call__(images, train) -> Output`.
    combine: "probabilities" gives the log of the mean softmax probabilities, "logits" the mean of
      the logits.
    weights: name -> weight in the mean, scaled to sum to 1; None gives equal weights.
  """

  members: Mapping[str, nn.Module]
  combine: str = "probabilities"
  weights: Mapping[str, float] | None = None

  def __call__(self, images: Array, train: bool = False) -> Output:
    """Logits (B, classes), float32 or wider, without features.

    Raises:
      ConfigError: for no members, an unknown `combine`, or weights for other names, negative,
        not finite or all 0.
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
  """Combine several networks into one whose output is their mean prediction.

  Args:
    networks: name -> network; any architectures, the same classes.
    combine: as in Ensemble.
    weights: as in Ensemble.

  Returns:
    The Ensemble and its variables; the arrays are not copied.

  Raises:
    ConfigError: as Ensemble.
  """
  # Copies: linen would share the variables of a module instance that is given twice.
  module = Ensemble(
    {name: separate(network.module) for name, network in networks.items()},
    combine,
    None if weights is None else dict(weights),
  )
  mean_weights(_member_weights(module), len(networks))
  variables = {f"members_{name}": network.variables for name, network in networks.items()}
  return Network(module, merge_variables(variables))


class AtExit(nn.Module):
  """A network with several exits, cut after one of them, as a network with one output.

  The variables are {"params": {"network": ...}, ...}: those of all blocks up to the exit, with the
  heads of earlier exits, which are not computed under jit. The Output is that of the exit; for the
  deepest exit of a MultiExit it has the features of the last block only (`plain_network` has all).

  Attributes:
    network: a model with `num_exits` and `run_block` (see MultiExit).
    exit: index of the exit; 0 is the shallowest.
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
  image_shape: InputShape,
) -> Network:
  """Cut a network after one exit and drop the variables of deeper layers.

  Args:
    module: a model with `num_exits` and `run_block` (see MultiExit).
    variables: its Flax variables.
    exit: index of the exit; 0 is the shallowest.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`); tracing finds which
      variables are needed.

  Returns:
    The AtExit and its variables; the arrays are not copied.

  Raises:
    ConfigError: for an exit out of range, or variables that are missing or of another shape.
  """
  _check_exit(module, exit)
  cut = AtExit(separate(module), exit)
  return Network(cut, needed_variables(cut, {"network": variables}, image_shape))


class ExitEnsemble(nn.Module):
  """The mean probabilities of all exits, or of all branches, of a network.

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
  """Wrap a network with several exits or branches in an ExitEnsemble."""
  return Network(ExitEnsemble(separate(module)), merge_variables({"network": variables}))


def exits_inside(ensemble: Network) -> Network:
  """The network whose exits an `exit_ensemble` averages, with its variables.

  Raises:
    ConfigError: for any other network, or an ensemble of branches.
  """
  module = ensemble.module
  if not isinstance(module, ExitEnsemble) or not hasattr(module.network, "run_block"):
    raise ConfigError(f"a {type(module).__name__}, expected an ensemble of one network's exits")
  variables = {c: tree["network"] for c, tree in ensemble.variables.items() if "network" in tree}
  return Network(module.network, variables)


def _member_weights(module: Ensemble) -> list[float] | None:
  """The weights in the order of the members, checked; None for equal weights."""
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
