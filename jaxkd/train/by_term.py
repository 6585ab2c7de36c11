"""Gradients of the labels' term and of all other terms apart, for optimizers that take both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd.jaxprs import live_inputs
from jaxkd.types import Array, Aux, Participants, Terms

# Names of the two gradients. The labels' terms are "labels" and those that start with "labels_".
LABELS, OTHERS = "labels", "others"


class TermwiseTransformation(optax.GradientTransformation):
  """An optimizer that takes two gradients: the type by which a training step knows it.

  `update` takes {LABELS: gradient, OTHERS: gradient} in place of a gradient: of the sum of the
  labels' terms of an objective, and of the sum of its other terms, both already weighted. Each has
  None in place of an array where its terms do not depend on the parameter at all.
  """


def gradients_by_term(
  objective: Callable[..., tuple[Array, Aux]], learning: Participants, *rest: Any
) -> tuple[tuple[Array, Aux], dict[str, Participants]]:
  """Return the objective, and the gradients of its labels' terms and of its other terms.

  The networks run once, and the gradient is propagated back twice.

  Args:
    objective: `Scheme.loss`; the sum of the totals of its terms is the scalar.
    learning: its first argument, with respect to which it is differentiated.
    *rest: its other arguments.

  Returns:
    ((scalar, Aux), {LABELS: gradient, OTHERS: gradient}), with None where the terms do not depend
    on a parameter.
  """

  def by_term(learning: Participants) -> tuple[list[Array], tuple[Array, Aux]]:
    loss, aux = objective(learning, *rest)
    return [_sum(aux.terms, labels=True), _sum(aux.terms, labels=False)], (loss, aux)

  sums, back, result = jax.vjp(by_term, learning, has_aux=True)
  ones = [(jnp.ones_like(sums[0]), jnp.zeros_like(sums[1]))]
  ones += [(jnp.zeros_like(sums[0]), jnp.ones_like(sums[1]))]
  jaxpr = jax.make_jaxpr(lambda learning: by_term(learning)[0])(learning).jaxpr
  found = {}
  for number, (name, one) in enumerate(zip((LABELS, OTHERS), ones, strict=True)):
    live = live_inputs(jaxpr, [number == 0, number == 1])
    leaves, structure = jax.tree.flatten(back(list(one))[0])
    kept = [leaf if used else None for leaf, used in zip(leaves, live, strict=True)]
    found[name] = jax.tree.unflatten(structure, kept)
  return result, found


def whole_gradient(gradients: Any) -> Any:
  """Return the gradient of the objective: the sum of both where there are two.

  >>> whole_gradient({LABELS: {"w": 1.0, "b": None}, OTHERS: {"w": 2.0, "b": 3.0}})
  {'b': 3.0, 'w': 3.0}
  """
  return jax.tree.map(_add, gradients[LABELS], gradients[OTHERS], is_leaf=lambda x: x is None)


def _add(labels: Any, others: Any) -> Any:
  if labels is None or others is None:
    # Neither: nothing that the objective depends on.
    return others if labels is None else labels
  return labels + others


def _is_of_labels(name: str) -> bool:
  return name == LABELS or name.startswith(f"{LABELS}_")


def _sum(terms: Mapping[str, Terms], *, labels: bool) -> Array:
  chosen = [t.total for name, t in terms.items() if _is_of_labels(name) == labels]
  return jnp.asarray(sum(chosen, start=jnp.float32(0)))
