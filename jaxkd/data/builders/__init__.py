"""TFDS builders of this project. They need no TensorFlow: images are stored as plain tensors."""
