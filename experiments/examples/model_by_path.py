"""A linen model of your own, named by its file in a config, with a stage tapped from it.

python experiments/train.py --config configs/digits.py:kd+at --workdir runs/own \
        --config.student.model=experiments/examples/model_by_path.py:Net \
        --config.student.tap=stage1=conv1,pooled=head:input
"""

import tempfile

from flax import linen as nn

from jaxkd.experiment.config import base_config
from jaxkd.experiment.run import run


class Net(nn.Module):
  """Images (B, H, W, C) to logits."""

  num_classes: int

  @nn.compact
  def __call__(self, images):
    """Return logits; the config says which stages are seen."""
    x = nn.relu(nn.Conv(8, (3, 3), name="conv1")(images))
    return nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1))


def main(epochs=10):
  """Distil a perceptron into the network; return the network's test accuracy."""
  config = base_config("kd")
  config.data.name, config.data.per_class, config.baseline = "digits", 20, False
  config.teacher.model, config.student.model = "mlp", f"{__file__}:Net"
  config.student.tap = "stage1=conv1,pooled=head:input"
  config.teacher.epochs, config.student.epochs, config.batch_size = 2, epochs, 32
  with tempfile.TemporaryDirectory() as folder:
    return run(config, f"{folder}/run")["stages"]["distilled"]["accuracy"]


if __name__ == "__main__":
  print(main())
