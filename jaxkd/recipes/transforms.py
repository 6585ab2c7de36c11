"""Recipes of methods whose comparison goes through trained modules: factors, boundaries."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxkd import config, losses, schemes
from jaxkd.adapters import paraphraser_for, translator_for
from jaxkd.config import choice, number, text
from jaxkd.losses._counting import counted_examples
from jaxkd.recipes.method import Method, Pair, Training, Warmup
from jaxkd.recipes.stages import AUTO, chosen_pairs, last_pair, stage_options, widths_matched
from jaxkd.schemes import Distillation
from jaxkd.types import Output


def _factors(pair: Pair) -> list[Distillation]:
  own = pair.hyperparameters
  stage = last_pair(pair)
  student, teacher = pair.shapes(stage)
  encoder, _ = paraphraser_for(teacher, stage=stage[1], rate=own.rate, **pair.options)
  translator = translator_for(
    student,
    teacher,
    stage=stage[0],
    rate=own.rate,
    batch_norm=own.translator_batch_norm,
    **pair.options,
  )
  loss = functools.partial(
    losses.factor_transfer, stages=(stage,), normalization=own.normalization, eps=own.eps
  )
  return [
    Distillation(
      pair.named("ft"),
      loss,
      pair.share * own.weight,
      pair.at,
      connectors={stage[0]: translator},
      teacher_connectors={stage[1]: encoder},
      compares=f"factors of {pair.compared([stage])}",
    )
  ]


def _paraphraser(pair: Pair) -> list[Training]:
  own = pair.hyperparameters
  ours, stage = last_pair(pair)
  _, teacher = pair.shapes((ours, stage))
  encoder, decoder = paraphraser_for(teacher, stage=stage, rate=own.rate, **pair.options)
  scheme = schemes.autoencoder(
    pair.teacher.model, encoder, decoder, stage=stage, loss=own.reconstruction
  )
  [distillation] = _factors(pair)
  return [
    Training(
      pair.named("paraphraser"),
      scheme,
      {"teacher": f"{pair.at}/{pair.at}"},
      epochs=own.paraphraser_epochs,
      learning_rate=own.paraphraser_learning_rate,
      reported="",
      label=f"of {pair.teacher.label}",
      gives={distillation.teacher_connector_name(stage): "paraphraser"},
    )
  ]


def _boundaries(pair: Pair) -> list[Distillation]:
  own = pair.hyperparameters
  stages = _boundary_stages(pair)
  options = stage_options(pair, stages)
  loss = functools.partial(losses.activation_boundaries, **options, margin=own.margin)

  def disagreement(
    student: Output, teacher: Output, where: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    shares = [
      losses.boundary_disagreement(
        student.preactivations[ours], teacher.preactivations[theirs], where=where
      )
      for ours, theirs in stages
    ]
    counted = jnp.float32(1)
    if where is not None:
      first = student.preactivations[stages[0][0]]
      counted = jnp.sum(
        jnp.asarray(counted_examples("disagreement", where, first)), dtype=jnp.float32
      )
    return counted * sum(shares, start=jnp.float32(0)), counted * len(shares)

  return [
    Distillation(
      pair.named("ab"),
      loss,
      pair.share * own.weight,
      pair.at,
      connectors=widths_matched(pair, stages, "preactivations", sizes=True),
      connects="preactivations",
      metrics={"disagreement": disagreement},
      compares=f"preactivations of {pair.compared(stages, 'preactivations')}",
    )
  ]


def _boundary_stages(pair: Pair) -> tuple[tuple[str, str], ...]:
  return chosen_pairs(pair, where="preactivations", vectors=True)


def _deepest(pair: Pair) -> str:
  return pair.deepest(_boundary_stages(pair), "preactivations")


METHODS = {
  "ft": Method(
    "factor transfer: a paraphraser of the teacher, a translator of the student (Kim et al., 2018)",
    {
      "stage": text(AUTO),
      "rate": number(0.5, exclusive=True, maximum=1.0),
      "normalization": choice("official", ("official", "repdistiller")),
      # The authors' 1e-12 gives a factor that is all zero a gradient of 1e10.
      "eps": number(1e-6, exclusive=True),
      "translator_batch_norm": config.flag(False),
      "reconstruction": choice("l1", ("l1", "mse")),
      "paraphraser_epochs": config.integer(6, minimum=1),
      # 0 takes the student's.
      "paraphraser_learning_rate": number(0.0),
      "weight": number(500.0),
    },
    _factors,
    before=_paraphraser,
    needs="maps",
    same_classes="",
  ),
  "ab": Method(
    "activation boundaries of hidden neurons (Heo et al., 2019)",
    {
      "stages": config.names((AUTO,)),
      "stage_weights": config.weights(),
      "margin": number(1.0, exclusive=True),
      "weight": number(1.0),
    },
    _boundaries,
    # The official second stage: soft targets at T = 3 alone.
    warmup=Warmup(
      default=True,
      epochs=30,
      label_weight=0.0,
      kd_weight=1.0,
      temperature=3.0,
      squared_temperature=False,
    ),
    deepest=_deepest,
    needs="preactivations",
    same_classes="",
  ),
}
