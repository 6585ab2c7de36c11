"""A small language model: logits (B, T, V) of the next token, a mask where the text has ended."""

import numpy as np
import optax
from flax import linen as nn

from jaxkd import data, losses, methods, train, types


class Decoder(nn.Module):
  """Causal attention: tokens (B, T) to logits (B, T, 12)."""

  width: int

  @nn.compact
  def __call__(self, tokens, train=False):  # noqa: D102
    x = nn.Embed(12, self.width)(tokens)
    x = x + nn.MultiHeadAttention(2)(x, mask=nn.make_causal_mask(tokens))
    x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(x)))
    return types.Output(logits=nn.Dense(12)(x), features={"tokens": x})


def main(folder):
  """Train a teacher and a student in `folder`; return both, scored on other texts."""
  rng = np.random.default_rng(0)
  steps = rng.integers(0, 2, (512, 17)) + 1  # a token is followed by one of two others
  text = (rng.integers(0, 12, (512, 1)) + np.cumsum(steps, axis=1)) % 12
  mask = np.arange(16) < rng.integers(8, 17, (512, 1))  # texts of 8 to 16 tokens
  fit, test = data.split_off(data.TreeExamples(text[:, :-1], text[:, 1:], mask=mask), 0.25, seed=0)
  kd = methods.Distillation("kd", methods.per_example(losses.knowledge_distillation), 0.9)
  taught = methods.offline(Decoder(8), {"teacher": Decoder(32)}, [kd], label_weight=0.1)
  both = dict(optimizer=optax.adam(0.01), epochs=4, examples=fit, batch_size=32, reported="student")
  first = train.Phase("teacher", methods.supervised(Decoder(32)), **both)
  second = train.Phase("student", taught, inherit={"teacher": "teacher/student"}, **both)
  return train.train_phases([first, second], folder, test=test)


if __name__ == "__main__":
  print({name: result.test for name, result in main("runs/language").items()})
