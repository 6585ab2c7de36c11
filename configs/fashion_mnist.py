"""Fashion-MNIST with few labels: 100 per class for the students, 3,000 for the teacher.

python experiments/train.py --config configs/fashion_mnist.py:simkd --workdir runs/fashion-simkd
"""

from ml_collections import ConfigDict

from jaxkd import methods
from jaxkd.experiment.function_matching import PATIENT, match_functions, recipe_or_method

# Learning rates, 0.1 where a method is not named, and a tenth of the published weights, which are
# for many more images and longer training. Chosen by `make fashion-search` on the validation split:
# experiments/studies/tables/results/fashion_search.md.
RATES = dict.fromkeys(
  ("kd", "fitnets", "at", "gradient_at", "nst", "ft", "ab", "rkd", "simkd"), 0.4
)
WEIGHTS = {"fitnets": 10.0, "at": 100.0, "nst": 5.0, "ft": 50.0, "rkd": 0.1}


def get_config(method: str = "simkd") -> ConfigDict:
  """Return the config for `method`, one of `jaxkd.methods.METHODS` or a sum of them ("kd+at")."""
  config = recipe_or_method(method)
  config.batch_size = 64
  config.evaluate_every = 10
  config.data.name = "fashion_mnist"
  config.data.per_class = 100
  config.data.teacher_per_class = 3000
  config.data.crop = 2
  config.data.flip = True

  config.teacher.model = "resnet14_w8"
  config.teacher.epochs = 4
  config.student.model = "resnet8_w4"
  config.student.epochs = 15
  for network in (config.teacher, config.student):
    network.learning_rate = 0.1
    network.nesterov = True
    network.schedule = "cosine"
    network.warmup_epochs = 1.0
  if "first_epochs" in config.method:
    config.method.first_epochs = 8
  if method in ("one", "okddip"):
    config.method.ramp_epochs = 4.0  # of 15, as the authors' 80 of 300
  if "learning_rate" in config.method:
    config.method.learning_rate = RATES.get(method, 0.1)
  for name, weight in WEIGHTS.items():
    section = methods.section(config, name)
    if section is not None:
      section.weight = weight
  if method == PATIENT:
    match_functions(config, epochs=100)
  return config
