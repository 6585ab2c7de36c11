"""OKDDip's loss: the definition, what learns, and peers that agree."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import PeerAttention
from jaxkd.errors import ConfigError
from jaxkd.losses import diverse_peers
from jaxkd.types import Output

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnames="detached")
def compute(peers, leader, attention, detached=False):
  def loss(peers, leader, attention):
    terms = diverse_peers(
      [Output(z) for z in peers], Output(leader), attention, target_smoothing=0.0, detached=detached
    )
    return terms["peers"].total + terms["leader"].total, terms

  return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(peers, leader, attention)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def softmax(x):
  x = np.exp(x.astype("float64") - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def kl(s, t):
  p, q = softmax(s / 3), softmax(t / 3)
  return 9 * (q * np.log(q / p)).sum(1).mean()


def test_terms_equal_the_definition():
  z, leader, a = 3 * draw(3, 6, 5), draw(6, 5, seed=1), softmax(draw(6, 3, 3, seed=2))
  (_, terms), _ = compute(z, leader, a.astype("float32"))
  targets = np.einsum("bij,jbc->ibc", a, z)
  np.testing.assert_allclose(terms["peers"].logit, sum(map(kl, z, targets)), rtol=1e-5)
  np.testing.assert_allclose(terms["leader"].logit, kl(leader, z.mean(0)), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-18, 1.0, 1e8])
def test_peers_that_agree_give_0(scale):
  z = np.float32(scale) * draw(6, 5)
  a = softmax(draw(6, 3, 3, seed=2)).astype("float32")
  (value, _), slopes = compute(np.stack([z] * 3), z, a)
  np.testing.assert_allclose(value, 0, atol=1e-5 * max(1, scale))
  assert all(np.isfinite(slope).all() for slope in slopes)


def test_detached_targets_leave_the_attention_a_gradient():
  z, leader, a = draw(3, 6, 5), draw(6, 5, seed=1), softmax(draw(6, 3, 3, seed=2))
  (value, _), (of_peers, of_leader, of_attention) = compute(z, leader, a.astype("float32"), True)
  (same, _), (through, led, attention) = compute(z, leader, a.astype("float32"))
  assert value == same
  np.testing.assert_allclose(of_leader, led, rtol=1e-6)
  np.testing.assert_allclose(of_attention, attention, rtol=1e-6)
  assert np.abs(of_attention).max() > 0 and not np.allclose(of_peers, through, atol=1e-3)
  targets = np.einsum("bij,jbc->ibc", a, z)
  np.testing.assert_allclose(
    of_peers, 3 * (softmax(z / 3) - softmax(targets / 3)) / 6, rtol=1e-4, atol=1e-6
  )


def test_wrong_shapes_are_refused_in_one_line():
  z = Output(jnp.ones((2, 3)))
  with pytest.raises(ConfigError, match=r"attention \(2, 2\) does not belong to 2 peers with"):
    diverse_peers([z, z], z, jnp.ones((2, 2)))
  with pytest.raises(ConfigError, match=r"^diverse_peers: peers is empty"):
    diverse_peers([], z, jnp.ones((2, 0, 0)))
  with pytest.raises(ConfigError, match=r"peer 0 \(2, 4\) differ in shape"):
    diverse_peers([Output(jnp.ones((2, 4)))], z, jnp.ones((2, 1, 1)))


def test_attention_is_the_softmax_of_shared_queries_and_keys():
  x = draw(3, 4, 8)
  module = PeerAttention(2)
  variables = module.init(jax.random.key(0), list(x), train=True)
  q, k = (np.einsum("mbd,de->mbe", x, variables["params"][n]["kernel"]) for n in ("query", "key"))
  wanted = softmax(np.einsum("ibe,jbe->bij", q, k))
  np.testing.assert_allclose(module.apply(variables, list(x), train=False), wanted, rtol=1e-4)
  maps = [np.broadcast_to(y[:, None, None], (4, 2, 2, 8)) for y in x]
  np.testing.assert_allclose(module.apply(variables, maps, train=False), wanted, rtol=1e-4)
  with pytest.raises(ConfigError, match=r"expected \(B, ..., D\), all of one shape"):
    module.init(jax.random.key(0), [x[0], x[1][:2]], train=True)
