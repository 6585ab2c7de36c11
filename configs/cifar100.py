"""CIFAR-100 by RepDistiller's recipe, the setting of the published tables.

    python experiments/train.py --config configs/cifar100.py:simkd --workdir runs/cifar100-simkd

240 epochs, batch 64, SGD 0.05 with drops at 150, 180 and 210, on all 50,000 training images; the
last epoch counts. Set --config.data.validation=0.1 to choose anything.
"""

from ml_collections import ConfigDict

from jaxkd import recipes


def get_config(method: str = "simkd") -> ConfigDict:
  """The config for `method`, one of `jaxkd.recipes.METHODS` or a sum of them ("kd+at")."""
  config = recipes.base_config(method)
  config.data.name = "cifar100"
  config.data.validation = 0.0
  config.data.crop = 4
  config.data.flip = True
  return config
