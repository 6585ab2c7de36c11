"""Fashion-MNIST with few labels: 100 per class for the students, all for the teacher.

python experiments/train.py --config configs/fashion_mnist.py:simkd --workdir runs/fashion-simkd
"""

from ml_collections import ConfigDict

from jaxkd import recipes


def get_config(method: str = "simkd") -> ConfigDict:
  """The config for `method`, one of `jaxkd.recipes.METHODS`."""
  config = recipes.base_config(method)
  config.batch_size = 128
  config.evaluate_every = 5
  config.data.name = "fashion_mnist"
  config.data.per_class = 100
  config.data.crop = 2
  config.data.flip = True

  config.teacher.model = "resnet20"
  config.teacher.epochs = 10
  config.student.model = "resnet8_w8"
  config.student.epochs = 60
  for network in (config.teacher, config.student):
    network.learning_rate = 0.1
    network.nesterov = True
    network.schedule = "cosine"
    network.warmup_epochs = 1.0
  if method == "simkd":
    # Without a label term the gradient is small: the rate that suits cross-entropy is too low.
    config.method.learning_rate = 0.4
  return config
