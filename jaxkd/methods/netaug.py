"""NetAug: a small network learns as a part of random wider ones, and is exported alone."""

from __future__ import annotations

import functools

import jax
from jax import lax

from jaxkd.errors import ConfigError
from jaxkd.fields import flag, number, numbers
from jaxkd.methods._labels import accuracy, label_terms
from jaxkd.methods.base import DISTILLED, Method, PhaseSpec, Setup
from jaxkd.models.compose.channels import masked_channels
from jaxkd.models.compose.widened import CLASSES, Widened
from jaxkd.networks import infer, initialize, key_for, learn, merge
from jaxkd.types import Array, Aux, Batch, Context, Network, Participants, Scheme

# The collection with the order of the inner channels of every block.
ORDER = "order"


def augmented(
  network: Widened,
  *,
  weight: float = 1.0,
  random_steps: int = 0,
  sort_every: int = 0,
) -> Scheme:
  """Return the scheme of a network that learns alone and as a part of random wider networks.

  All share one set of arrays, those of the widest: a network has their first channels. The
  objective is CE(network) + weight * CE(wider network), with labels smoothed by
  `Context.label_smoothing`. A wider network is drawn in every step, the same on all devices: with
  random widths and expansions in the first `random_steps` updates, later with random expansions of
  the network's own widths. It is computed at the full width with masks, as one program.

  Running statistics of batch normalisation are the network's own: passes of wider networks do not
  change them. The published code mixes both, and estimates them again with the network alone before
  every evaluation.

  With `sort_every`, at the start of each so many of the first `random_steps` updates the inner
  channels of every block are put in the order of their importance, the sum of the magnitudes of the
  weights with which the last convolution of the block reads them. The arrays stay as they are and
  their order is part of the state, so that the momentum of a channel moves with it (in the
  published code it does not).

  Participants: "student", with the variables of the widest network and the collection "order". The
  only predictor is the network, exported with its own variables. Terms: "labels", "augmented".

  Args:
    network: the network, and its widest form.
    weight: weight of the wider network's cross-entropy.
    random_steps: updates with random widths.
    sort_every: updates between orders, those of an epoch; 0 keeps the first order.
  """

  def init(rng: Array, batch: Batch) -> Participants:
    variables = initialize(network.wide, rng, "student", batch.inputs)
    return {"student": {**variables, ORDER: network.first_order()}}

  def targets(participants: Participants, batch: Batch) -> None:
    return None

  def order_at(step: Array, variables: Participants) -> dict[str, Array]:
    if not sort_every or not random_steps:
      return variables[ORDER]
    due = (step % sort_every == 0) & (step < random_steps)
    params = lax.stop_gradient(variables["params"])
    return lax.cond(due, lambda: network.sorted_order(params), lambda: variables[ORDER])

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: None,
    context: Context,
  ) -> tuple[Array, Aux]:
    variables = merge(participants, learning)["student"]
    order = order_at(context.step, variables)
    kept = {kind: tree for kind, tree in variables.items() if kind != ORDER}
    ordered = network.ordered(kept, order)
    run = functools.partial(learn, inputs=batch.inputs, where=batch.mask)

    output, changes = run(network.base, network.own(ordered), rng=context.rng)
    terms = {"labels": label_terms(output.logits, batch, context)}
    if weight:
      # Not of the key of a device or a part of a batch, which all draw the same network.
      draws = jax.random.fold_in(key_for(jax.random.key(0), "augmented"), context.step)
      counts = network.draw(draws, wider=context.step < random_steps)
      with masked_channels(counts):
        wider, _ = run(network.wide, ordered, rng=key_for(context.rng, "augmented"))
      terms["augmented"] = weight * label_terms(wider.logits, batch, context)
    statistics = network.with_own(kept["batch_stats"], changes["batch_stats"], order)
    state = {"student": {"batch_stats": statistics, ORDER: order}}
    total = sum((t.total for t in terms.values()), start=jax.numpy.float32(0))
    return total, Aux(terms, {"accuracy": accuracy(output.logits, batch)}, state)

  def own(participants: Participants) -> Network:
    variables = dict(participants["student"])
    order = variables.pop(ORDER)
    return Network(network.base, network.own(network.ordered(variables, order)))

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    return {"student": infer(*own(participants), images).logits}

  def export(participants: Participants) -> dict[str, Network]:
    return {"student": own(participants)}

  return Scheme(init, targets, loss, predict, ("student",), export)


def _phases(setup: Setup) -> list[PhaseSpec]:
  hyperparameters, steps = setup.hyperparameters, setup.epochs * setup.steps_per_epoch
  try:
    network = Widened(setup.student, hyperparameters.widths, hyperparameters.expansions)
  except ConfigError as error:
    raise ConfigError(f"method.{error}") from error
  scheme = augmented(
    network,
    weight=hyperparameters.weight,
    random_steps=round(hyperparameters.random_share * steps),
    sort_every=setup.steps_per_epoch if hyperparameters.sort_channels else 0,
  )
  note = (
    f"it also learns as a part of networks of up to {hyperparameters.widths[-1]:g} times its "
    f"channels, and {hyperparameters.expansions[-1]:g} times its expansions"
  )
  return [PhaseSpec(DISTILLED, scheme, learning_rate=hyperparameters.learning_rate, notes=(note,))]


METHOD = Method(
  "NetAug: learns as a part of random wider networks that share its weights (Cai et al., 2022)",
  {
    # Weight of the wider network's cross-entropy.
    "weight": number(1.0),
    # Factors of the network's own widths and expansions; the first is 1.
    "widths": numbers((1.0, 1.8, 2.6)),
    "expansions": numbers((1.0, 1.6, 2.2, 2.8)),
    # Share of the training with random widths; later, expansions alone are random.
    "random_share": number(0.5, maximum=1.0),
    # Whether inner channels are sorted by importance before every epoch with random widths.
    "sort_channels": flag(True),
  },
  phases=_phases,
  source="Cai et al., Network Augmentation for Tiny Deep Learning, ICLR 2022",
  without_teacher=True,
  same_classes="",
  only=CLASSES,
)
