"""Segmentation: logits (B, H, W, C) of every pixel; feature maps are compared, too (AT)."""

import numpy as np
import optax
from flax import linen as nn

from jaxkd import data, losses, methods, train, types


class Segmenter(nn.Module):
  """Two convolutions: images (B, H, W, 1) to logits (B, H, W, 3)."""

  width: int

  @nn.compact
  def __call__(self, images, train=False):  # noqa: D102
    x = nn.relu(nn.Conv(self.width, (5, 5))(images))
    x = nn.relu(nn.Conv(self.width, (3, 3))(x))
    return types.Output(logits=nn.Conv(3, (1, 1))(x), features={"map": x})


def main(folder):
  """Train a teacher and a student in `folder`; return both, scored on other images."""
  rng = np.random.default_rng(0)
  labels = np.kron(rng.integers(0, 3, (256, 3, 3)), np.ones((1, 4, 4), int))  # squares
  images = (labels + rng.normal(size=labels.shape))[..., None]  # of brightness 0, 1, 2, with noise
  labels[:, 5, :] = data.UNLABELLED  # pixels without a class, which the teacher labels
  fit, test = data.split_off(data.TreeExamples(images, labels), 0.25, seed=0)
  kd = methods.Distillation("kd", methods.per_example(losses.knowledge_distillation), 0.9)
  maps = methods.per_example(losses.attention_transfer, stages=["map"])
  terms = [kd, methods.Distillation("at", maps, 100.0)]
  taught = methods.offline(Segmenter(4), {"teacher": Segmenter(16)}, terms, label_weight=0.1)
  both = dict(optimizer=optax.adam(0.01), epochs=4, examples=fit, batch_size=32, reported="student")
  first = train.Phase("teacher", methods.supervised(Segmenter(16)), **both)
  second = train.Phase("student", taught, inherit={"teacher": "teacher/student"}, **both)
  return train.train_phases([first, second], folder, test=test)


if __name__ == "__main__":
  print({name: result.test for name, result in main("runs/segmentation").items()})
