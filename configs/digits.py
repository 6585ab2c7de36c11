"""Handwritten digits, 8x8: embedded data, minutes on a laptop's CPU.

    python experiments/train.py --config configs/digits.py:simkd --workdir runs/digits-simkd

The teacher is trained on all training images, the students on ten of each class.
"""

from ml_collections import ConfigDict

from jaxkd import methods
from jaxkd.experiment.function_matching import PATIENT, match_functions, recipe_or_method


def get_config(method: str = "simkd") -> ConfigDict:
  """Return the config for `method`, one of `jaxkd.methods.METHODS` or a sum of them ("kd+at")."""
  config = recipe_or_method(method)
  config.batch_size = 64
  config.evaluate_every = 5
  config.data.name = "digits"
  config.data.per_class = 10
  config.data.crop = 1

  config.teacher.model = "resnet14_w8"
  config.teacher.epochs = 30
  config.student.model = "resnet8_w4"
  config.student.epochs = 200
  for network in (config.teacher, config.student):
    network.learning_rate = 0.1
    network.nesterov = True
    network.schedule = "cosine"
    network.warmup_epochs = 1.0
  if "first_epochs" in config.method:
    config.method.first_epochs = 50
  if method == "simkd":
    # Without a label term the gradient is small: the rate that suits cross-entropy is too low.
    config.method.learning_rate = 0.3
  attention = methods.section(config, "at")
  if attention is not None:
    # Maps of unit norm differ more per pixel the fewer pixels they have: the published 1000 is
    # for maps of 32x32 to 8x8, and outweighs the labels here.
    attention.weight = 10.0
  calibration = methods.section(config, "semckd")
  if calibration is not None:
    # The published 400 diverges at this learning rate.
    calibration.weight = 10.0
  if method == "mlkd":
    # The part of the classes grows with the square of the batch: the published weight outweighs the
    # labels at this rate, and the student does not learn.
    config.method.weight, config.method.learning_rate = 0.1, 0.02
  if method == PATIENT:
    match_functions(config, epochs=1000)
  return config
