"""Text classification: a model's input is a dict of tokens and mask; a student learns by KD."""

import numpy as np
import optax
from flax import linen as nn

from jaxkd import data, losses, methods, train, types


class Reader(nn.Module):
  """A layer of attention: {"tokens": (B, T), "mask": (B, T)} to logits (B, 2)."""

  width: int

  @nn.compact
  def __call__(self, inputs, train=False):  # noqa: D102
    tokens, mask = inputs["tokens"], inputs["mask"]
    x = nn.Embed(20, self.width)(tokens)
    x = x + nn.MultiHeadAttention(2)(x, mask=mask[:, None, None, :])
    pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return types.Output(logits=nn.Dense(2)(pooled), features={"tokens": x, "pooled": pooled})


def main(folder):
  """Train a teacher and a student in `folder`; return both, scored on other texts."""
  rng = np.random.default_rng(0)
  mask = np.arange(12) < rng.integers(5, 13, (512, 1))  # texts of 5 to 12 words
  inputs = {"tokens": rng.integers(1, 20, mask.shape) * mask, "mask": mask}
  labels = (mask & (inputs["tokens"] < 10)).sum(1) > mask.sum(1) / 2  # the more frequent words
  fit, test = data.split_off(data.TreeExamples(inputs, labels), 0.25, seed=0)
  kd = methods.Distillation("kd", methods.per_example(losses.knowledge_distillation), 0.9)
  taught = methods.offline(Reader(8), {"teacher": Reader(32)}, [kd], label_weight=0.1)
  both = dict(optimizer=optax.adam(0.01), epochs=4, examples=fit, batch_size=32, reported="student")
  first = train.Phase("teacher", methods.supervised(Reader(32)), **both)
  second = train.Phase("student", taught, inherit={"teacher": "teacher/student"}, **both)
  return train.train_phases([first, second], folder, test=test)


if __name__ == "__main__":
  print({name: result.test for name, result in main("runs/text").items()})
