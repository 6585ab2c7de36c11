"""FT, factor transfer: a paraphraser of the teacher, a translator of the student."""

from __future__ import annotations

from typing import Literal

from flax import linen as nn
from jax import lax

from jaxkd import losses
from jaxkd.adapters import TeacherAtStages, paraphraser_for, translator_for
from jaxkd.counts import scaled
from jaxkd.fields import choice, flag, integer, number, text
from jaxkd.losses._checks import stage_arrays
from jaxkd.methods._features import feature_term
from jaxkd.methods._stages import AUTO, adapter_at, last_pair
from jaxkd.methods.base import Method, PhaseSpec, Setup, Term
from jaxkd.methods.distillation import per_example
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
  """Return the scheme that trains an encoder and a decoder on a frozen teacher's features.

  The objective is `reconstruction_error(decoder(encoder(features)), features)`, without labels.
  The teacher runs in evaluation mode. The scheme has no predictor: its result is the participant
  "paraphraser", the encoder.

  Participants: "teacher", "paraphraser" and "decoder".

  Args:
    teacher: `__call__(images, train) -> Output`.
    encoder: `__call__(features, train)`; `jaxkd.adapters.paraphraser_for` creates encoder and
      decoder.
    decoder: `__call__(factors, train)`, to the shape of the features.
    stage: stage of the teacher whose features are reconstructed.
    loss: "l1" or "mse".

  Raises:
    ConfigError: when traced, listing the teacher's stages, if it has no such stage; if
      the decoder's output has another shape than the features; if loss is unknown.

  Source: Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer",
  NeurIPS 2018, first stage; "l1" as in the authors' code, "mse" as in RepDistiller.
  """

  def features_of(participants: Participants, images: Array) -> Array:
    output = infer(teacher, participants["teacher"], images)
    return stage_arrays(output, stage, role="teacher")

  def init(rng: Array, batch: Batch) -> Participants:
    participants = {"teacher": initialize(teacher, rng, "teacher", batch.inputs)}
    features = features_of(participants, batch.inputs)
    participants["paraphraser"] = initialize(encoder, rng, "paraphraser", features)
    factors = infer(encoder, participants["paraphraser"], features)
    participants["decoder"] = initialize(decoder, rng, "decoder", factors)
    return participants

  def targets(participants: Participants, batch: Batch) -> Array:
    return features_of(participants, batch.inputs)

  def reconstruct(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: Array,
    context: Context,
  ) -> tuple[Array, Aux]:
    variables = merge(participants, learning)
    features = lax.stop_gradient(targets)
    state: Participants = {}
    factors, state["paraphraser"] = learn(
      encoder,
      variables["paraphraser"],
      features,
      key_for(context.rng, "paraphraser"),
      where=batch.mask,
    )
    restored, state["decoder"] = learn(
      decoder, variables["decoder"], factors, key_for(context.rng, "decoder"), where=batch.mask
    )
    error = losses.reconstruction_error(restored, features, error=loss, where=batch.mask)
    terms = scaled(Terms(feature=error), batch, context)
    return terms.total, Aux({"reconstruction": terms}, {}, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    return {}

  def export(participants: Participants) -> dict[str, Network]:
    return {}

  return Scheme(init, targets, reconstruct, predict, ("paraphraser", "decoder"), export)


def _distillations(setup: Setup) -> list[Term]:
  hyperparameters = setup.hyperparameters
  stage = last_pair(setup)
  student, teacher = setup.shapes(stage)
  encoder, _ = paraphraser_for(teacher, stage=stage[1], rate=hyperparameters.rate, **setup.options)
  translator = translator_for(
    student,
    teacher,
    stage=stage[0],
    rate=hyperparameters.rate,
    batch_norm=hyperparameters.translator_batch_norm,
    **setup.options,
  )
  loss = per_example(
    losses.factor_transfer,
    stages=(stage,),
    normalization=hyperparameters.normalization,
    eps=hyperparameters.eps,
  )
  term = feature_term(
    "ft",
    setup,
    loss,
    [stage],
    **adapter_at("ft", setup, {stage[0]: translator}),
    teacher_adapter=TeacherAtStages({stage[1]: encoder}),
    teacher_adapter_name=_paraphraser_name(setup, stage[1]),
  )
  return [Term(term.distillation, f"factors of {term.compares}")]


def _paraphraser_phase(setup: Setup) -> list[PhaseSpec]:
  hyperparameters = setup.hyperparameters
  ours, stage = last_pair(setup)
  _, teacher = setup.shapes((ours, stage))
  encoder, decoder = paraphraser_for(
    teacher, stage=stage, rate=hyperparameters.rate, **setup.options
  )
  scheme = autoencoder(
    setup.teacher.model, encoder, decoder, stage=stage, loss=hyperparameters.reconstruction
  )
  return [
    PhaseSpec(
      setup.named("paraphraser"),
      scheme,
      {"teacher": f"{setup.teacher_name}/{setup.teacher_name}"},
      epochs=hyperparameters.paraphraser_epochs,
      learning_rate=hyperparameters.paraphraser_learning_rate,
      reported="",
      label=f"of {setup.teacher.label}",
      gives={_paraphraser_name(setup, stage): "paraphraser"},
      role="",
    )
  ]


def _paraphraser_name(setup: Setup, stage: str) -> str:
  return f"{setup.named('ft')}_{stage}_teacher_connector"


METHOD = Method(
  "factor transfer: a paraphraser of the teacher, a translator of the student (Kim et al., 2018)",
  {
    "stage": text(AUTO),
    "rate": number(0.5, exclusive=True, maximum=1.0),
    "normalization": choice("official", ("official", "repdistiller")),
    # The authors' 1e-12 gives a gradient of 1e10 at a factor of zeros.
    "eps": number(1e-6, exclusive=True),
    "translator_batch_norm": flag(False),
    "reconstruction": choice("l1", ("l1", "mse")),
    "paraphraser_epochs": integer(6, minimum=1),
    # 0 takes the student's rate.
    "paraphraser_learning_rate": number(0.0),
    "weight": number(500.0),
  },
  _distillations,
  source="Kim et al., Paraphrasing Complex Network, NeurIPS 2018",
  before=_paraphraser_phase,
  needs="maps",
  same_classes="",
  multi_label=True,
)
