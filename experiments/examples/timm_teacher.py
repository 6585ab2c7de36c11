"""A ViT of timm (a file of weights with side=224, or new ones) teaches a small ResNet."""

import jax
import numpy as np
import optax

from jaxkd import losses, models


def main(steps=20, weights=None, side=32, classes=10):
  """Return every step's loss; `weights` is a file or a state dict of timm."""
  images = np.float32(np.random.default_rng(0).normal(size=(16, side, side, 3)))
  teacher = models.create("timm_vit_tiny_patch16_224", num_classes=classes)
  variables = jax.jit(teacher.init)(jax.random.key(0), images[:1])
  if weights is not None:
    variables = models.from_torch(weights, teacher, image_shape=(side, side, 3))
  targets = jax.jit(teacher.apply)(variables, images).logits
  student, optimizer = models.create("resnet8_w4", num_classes=classes), optax.adam(1e-2)

  @jax.jit
  def step(state, moments):
    def loss(params):
      variables = {**state, "params": params}
      output, updated = student.apply(variables, images, True, mutable=["batch_stats"])
      return losses.soft_target_kl(output.logits, targets, temperature=4.0), updated

    (value, updated), gradient = jax.value_and_grad(loss, has_aux=True)(state["params"])
    updates, moments = optimizer.update(gradient, moments)
    return {"params": optax.apply_updates(state["params"], updates), **updated}, moments, value

  state, found = student.init(jax.random.key(1), images[:1]), []
  moments = optimizer.init(state["params"])
  for _ in range(steps):
    state, moments, value = step(state, moments)
    found.append(float(value))
  return found


if __name__ == "__main__":
  print(main())
