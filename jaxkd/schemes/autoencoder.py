"""A paraphraser that learns to compress a teacher's features and to restore them."""

from __future__ import annotations

from typing import Literal

from flax import linen as nn
from jax import lax

from jaxkd.counts import scaled
from jaxkd.losses import reconstruction_error
from jaxkd.losses._checks import stage_arrays
from jaxkd.networks import Model, infer, initialize, key_for, learn, merge
from jaxkd.types import Array, Aux, Batch, Context, Network, Participants, Scheme, Terms


def autoencoder(
  teacher: Model,
  encoder: nn.Module,
  decoder: nn.Module,
  *,
  stage: str = "stage3",
  loss: Literal["l1", "mse"] = "l1",
) -> Scheme:
  """A scheme that trains an encoder and a decoder on a frozen teacher's features.

  The objective is `reconstruction_error(decoder(encoder(features)), features)`, without labels.
  The teacher runs in evaluation mode. The scheme predicts nothing: what leaves it is the
  participant "paraphraser", the encoder.

  Participants: "teacher", "paraphraser" and "decoder".

  Args:
    teacher: `__call__(images, train) -> Output`.
    encoder: `__call__(features, train)`, with `decoder` as `jaxkd.adapters.paraphraser_for`
      gives them.
    decoder: back to the shape of the features.
    stage: of the teacher, whose features are reconstructed.
    loss: "l1" or "mse".

  Raises:
    ConfigError: when traced, listing the stages there are, if the teacher has no such stage; if
      the decoder's output has another shape than the features; if loss is unknown.

  Source: Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer",
  NeurIPS 2018, first stage; "l1" as the authors' code, "mse" as RepDistiller.
  """

  def features_of(participants: Participants, images: Array) -> Array:
    output = infer(teacher, participants["teacher"], images)
    return stage_arrays(output, stage, role="teacher")

  def init(rng: Array, batch: Batch) -> Participants:
    participants = {"teacher": initialize(teacher, rng, "teacher", batch.images)}
    features = features_of(participants, batch.images)
    participants["paraphraser"] = initialize(encoder, rng, "paraphraser", features)
    factors = infer(encoder, participants["paraphraser"], features)
    participants["decoder"] = initialize(decoder, rng, "decoder", factors)
    return participants

  def targets(participants: Participants, batch: Batch) -> Array:
    return features_of(participants, batch.images)

  def reconstruct(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: Array,
    context: Context,
  ) -> tuple[Array, Aux]:
    everyone = merge(participants, learning)
    features = lax.stop_gradient(targets)
    state: Participants = {}
    factors, state["paraphraser"] = learn(
      encoder,
      everyone["paraphraser"],
      features,
      key_for(context.rng, "paraphraser"),
      where=batch.mask,
    )
    restored, state["decoder"] = learn(
      decoder, everyone["decoder"], factors, key_for(context.rng, "decoder"), where=batch.mask
    )
    error = reconstruction_error(restored, features, error=loss, where=batch.mask)
    terms = scaled(Terms(feature=error), batch, context)
    return terms.total, Aux({"reconstruction": terms}, {}, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    return {}

  def export(participants: Participants) -> dict[str, Network]:
    return {}

  return Scheme(init, targets, reconstruct, predict, ("paraphraser", "decoder"), export)
