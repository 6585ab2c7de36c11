"""The minimum cut, compared with all cuts of small graphs."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from jaxkd.cache.minimum_cut import PricedGraph

NODES = range(6)
EDGES = [(a, b) for a in NODES for b in NODES if a != b]


@given(st.dictionaries(st.sampled_from(EDGES), st.integers(0, 5), max_size=14))
def test_the_cut_is_minimal_and_the_nearest_to_the_sink(prices):
  source, sink = 0, 5

  def price(far):
    return sum(p for (a, b), p in prices.items() if a not in far and b in far)

  graph = PricedGraph()
  for (start, end), one in prices.items():
    graph.connect(start, end, one)
  found = graph.far_side(source, sink)
  assert sink in found and source not in found
  between = [n for n in NODES if n not in (source, sink)]
  chosen = [c for k in range(len(between) + 1) for c in itertools.combinations(between, k)]
  cuts = [{sink, *some} for some in chosen]
  cheapest = min(map(price, cuts))
  assert price(found) == cheapest
  assert all(found <= far for far in cuts if price(far) == cheapest)


def test_prices_of_repeated_edges_add_up():
  graph = PricedGraph()
  graph.connect("a", "b", 2)
  graph.connect("a", "b", 2)
  graph.connect("b", "c", 3)
  assert graph.far_side("a", "c") == {"c"}
