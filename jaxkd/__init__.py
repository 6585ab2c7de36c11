"""jaxkd: knowledge distillation in functional JAX and Flax.

Import what you need: `jaxkd.losses` (needs jax alone), `jaxkd.models`, `jaxkd.adapters`,
`jaxkd.methods`, `jaxkd.train`, `jaxkd.data`, `jaxkd.evaluate`, `jaxkd.methods`.
"""

__version__ = "0.1.0"
