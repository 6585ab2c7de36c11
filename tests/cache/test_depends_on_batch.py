"""`depends_on_batch` detects outputs that depend on other examples or on the place."""

import numpy as np
import pytest

from jaxkd.cache.targets import depends_on_batch
from tests.cache.split_losses import batch_of, normal


@pytest.mark.parametrize("size", [2, 5, 6])
def test_dependence_is_detected_even_where_order_does_not_matter(size):
  batch = batch_of(normal(size, 3))
  assert not depends_on_batch(lambda b: [np.sin(b.inputs), b.indices], batch)
  # Batch statistics are the same in any order.
  assert depends_on_batch(lambda b: b.inputs - b.inputs.mean(0), batch)
  assert depends_on_batch(lambda b: b.inputs * np.arange(len(b.inputs))[:, None], batch)
  assert depends_on_batch(lambda b: np.roll(b.inputs, 1, axis=0), batch)
  assert depends_on_batch(lambda b: np.where(b.inputs > 9, 0, np.nan), batch)
