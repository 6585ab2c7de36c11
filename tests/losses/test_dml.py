"""Deep mutual learning and native ensembles: definitions and published smoothing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import gated_logits, mutual, native_ensemble, peer_kl, soft_target_kl
from jaxkd.types import Output, Terms

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SELF, *PEERS = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")


def softmax(z):
  p = np.exp(np.asarray(z, np.float64))
  return p / p.sum(-1, keepdims=True)


def by_hand(student, target, temperature=1.0):
  """T^2 * KL(target || student), with probabilities as target."""
  terms = target * (np.log(target) - np.log(softmax(student / temperature)))
  return temperature**2 * terms.sum(-1).mean()


def mutually(student, *peers, **options):
  return mutual(Output(student), [Output(z) for z in peers], **options).total


def together(*branches, **options):
  """The native-ensemble loss; the last argument is the ensemble."""
  *branches, ensemble = (Output(z) for z in branches)
  return native_ensemble(branches, ensemble, **options).total


@functools.cache
def compiled(loss, count, **options):
  return jit(jax.value_and_grad(functools.partial(loss, **options), tuple(range(count))))


def value_and_gradients(loss, *arrays, **options):
  return compiled(loss, len(arrays), **options)(*arrays)


def test_peer_kl_equals_the_definition_with_the_peer_as_target():
  value = peer_kl(SELF, PEERS[0], temperature=2.0)
  np.testing.assert_allclose(value, by_hand(SELF, softmax(PEERS[0] / 2), 2.0), rtol=1e-5)
  plain = peer_kl(SELF, PEERS[0], temperature=2.0, squared_temperature=False)
  np.testing.assert_allclose(4 * plain, value, rtol=1e-6)
  np.testing.assert_array_equal(value, soft_target_kl(SELF, PEERS[0], temperature=2.0))


def test_value_and_gradient_are_zero_for_equal_networks():
  value, gradients = value_and_gradients(
    mutually, SELF, *[SELF] * 3, target="pairwise", detached=False
  )
  assert value == 0
  assert not np.any(gradients)
  value, gradients = value_and_gradients(
    together, SELF, SELF, SELF, target_smoothing=0.0, detached=False
  )
  assert value == 0
  assert not np.any(gradients)


def test_smoothing_equals_the_published_formulas():
  p, q = softmax(SELF), softmax(PEERS[0])
  eps = 0.01  # large enough to change the value
  value = peer_kl(SELF, PEERS[0], ratio_smoothing=eps)
  np.testing.assert_allclose(value, (q * np.log(eps + q / (p + eps))).sum(-1).mean(), rtol=1e-5)
  value = peer_kl(SELF, PEERS[0], target_smoothing=eps)
  np.testing.assert_allclose(value, by_hand(SELF, q + eps), rtol=1e-5)
  with pytest.raises(ConfigError, match=r"target_smoothing is 0\.1 and ratio_smoothing 0\.2"):
    peer_kl(SELF, SELF, target_smoothing=0.1, ratio_smoothing=0.2)


@pytest.mark.parametrize("options", [{}, {"target_smoothing": 0.01}, {"ratio_smoothing": 0.01}])
def test_peer_gets_a_gradient_only_if_not_detached(options):
  with jax.enable_x64(True):
    pair, moves = np.float64([SELF, PEERS[0]]), np.float64(PEERS[1:])

    @jit
    def slopes(pair):
      detached, attached = (
        jax.grad(lambda x, d=d: peer_kl(*x, detached=d, **options))(pair) for d in (True, False)
      )
      moved = jnp.stack([pair + 1e-5 * moves, pair - 1e-5 * moves])
      up, down = jax.vmap(lambda x: peer_kl(*x, **options))(moved)
      return detached, attached, (up - down) / 2e-5

    detached, attached, finite = slopes(pair)
  assert np.abs(attached).max() > 0.01
  np.testing.assert_array_equal(detached, [attached[0], np.zeros_like(SELF)])
  np.testing.assert_allclose(np.vdot(attached, moves), finite, rtol=1e-7)


def test_extreme_logits_give_finite_values_and_gradients():
  extreme = np.float32([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
  for options in ({}, {"target_smoothing": 1e-7}, {"ratio_smoothing": 1e-8}):
    result = value_and_gradients(peer_kl, extreme, -extreme, detached=False, **options)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))


@pytest.mark.parametrize("target", ["pairwise", "ensemble"])
def test_order_of_the_peers_does_not_matter(target):
  options = {"target": target, "detached": False}
  value, (own, *theirs) = value_and_gradients(mutually, SELF, *PEERS, **options)
  for order in ([1, 2, 0], [2, 1, 0]):
    peers = [PEERS[i] for i in order]
    turned, (same, *others) = value_and_gradients(mutually, SELF, *peers, **options)
    np.testing.assert_allclose(turned, value, rtol=1e-6)
    np.testing.assert_allclose(same, own, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(others, [theirs[i] for i in order], rtol=1e-5, atol=1e-7)


def test_mutual_sums_or_averages_over_peers_or_uses_their_ensemble():
  each = [by_hand(SELF, softmax(z / 2), 2.0) for z in PEERS]
  np.testing.assert_allclose(mutually(SELF, *PEERS, temperature=2.0), sum(each), rtol=1e-5)
  mean = mutually(SELF, *PEERS, temperature=2.0, over_peers="mean")
  np.testing.assert_allclose(mean, sum(each) / 3, rtol=1e-5)
  joined = softmax(sum(PEERS) / 3 / 2)
  for over_peers in ("sum", "mean"):
    value = mutually(SELF, *PEERS, temperature=2.0, target="ensemble", over_peers=over_peers)
    np.testing.assert_allclose(value, by_hand(SELF, joined, 2.0), rtol=1e-5)


def test_terms_are_zero_without_peers_or_branches():
  assert mutual(Output(SELF), []) == Terms()
  assert native_ensemble([], Output(SELF)) == Terms()


def test_pairwise_and_ensemble_targets_are_equal_for_one_peer():
  value = mutually(SELF, PEERS[0])
  np.testing.assert_allclose(value, mutually(SELF, PEERS[0], target="ensemble"), rtol=1e-6)


def test_native_ensemble_gives_gradients_to_branches_and_not_to_the_ensemble():
  value, gradients = value_and_gradients(together, SELF, *PEERS)
  target = softmax(PEERS[-1] / 3)
  expected = sum(by_hand(z, target, 3.0) for z in (SELF, *PEERS[:-1]))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert all(np.any(g) for g in gradients[:-1])
  assert not np.any(gradients[-1])
  _, gradients = value_and_gradients(together, SELF, *PEERS, detached=False)
  assert np.any(gradients[-1])


def test_branch_equal_to_the_ensemble_has_zero_gradient():
  gate = jnp.ones((5, 1))
  ensemble = gated_logits([Output(SELF)], gate)
  np.testing.assert_array_equal(ensemble, SELF)
  _, (*_, gradient, _) = value_and_gradients(together, SELF, *PEERS[:1], SELF, ensemble)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_gated_logits_are_weighted_per_example():
  gate = softmax(np.random.default_rng(2).normal(size=(5, 3)))
  value = gated_logits([Output(z) for z in PEERS], gate)
  np.testing.assert_allclose(value, np.einsum("bk,kbc->bc", gate, PEERS), rtol=1e-5)


def test_error_for_arguments_that_do_not_fit_names_them():
  with pytest.raises(ConfigError, match=r"gate \(5, 2\) does not belong to 3 branches"):
    gated_logits([Output(z) for z in PEERS], np.ones((5, 2)))
  with pytest.raises(ConfigError, match=r"branch 1 \(5, 2\) differ in shape"):
    gated_logits([Output(SELF), Output(SELF[:, :2])], np.ones((5, 2)))
  with pytest.raises(ConfigError, match="there is no branch"):
    gated_logits([], np.ones((5, 0)))
  with pytest.raises(ConfigError, match=r"student \(5, 3\) and peer 1 \(5, 2\) differ in shape"):
    mutual(Output(SELF), [Output(SELF), Output(SELF[:, :2])])
  with pytest.raises(ConfigError, match=r"branch 1: student \(5, 2\) and ensemble \(5, 3\)"):
    native_ensemble([Output(SELF), Output(SELF[:, :2])], Output(SELF))
  with pytest.raises(ConfigError, match="peer 0's Output has no logits"):
    mutual(Output(SELF), [Output()])
  for options in ({"over_peers": "max"}, {"target": "pair"}, {"temperature": 0.0}):
    with pytest.raises(ConfigError, match=next(iter(options))):
      mutual(Output(SELF), [Output(SELF)], **options)
