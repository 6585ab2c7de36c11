"""The minimum cut between two nodes of a graph with edge prices."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Hashable


class PricedGraph:
  """A directed graph with a price for cutting each edge.

  >>> graph = PricedGraph()
  >>> for start, end, price in (("s", "a", 3), ("a", "t", 2), ("s", "t", 1)):
  ...   graph.connect(start, end, price)
  >>> sorted(graph.far_side("s", "t"))
  ['t']
  """

  # More than any sum of prices: an edge that must not be cut.
  NEVER = 1 << 200

  def __init__(self) -> None:
    self._left: dict[Hashable, dict[Hashable, int]] = collections.defaultdict(dict)

  def connect(self, start: Hashable, end: Hashable, price: int) -> None:
    """Add an edge, or add to the price of an existing one."""
    self._left[start][end] = self._left[start].get(end, 0) + price
    self._left[end].setdefault(start, 0)

  def far_side(self, source: Hashable, sink: Hashable) -> set[Hashable]:
    """Return the nodes on the sink's side of a minimum cut; of several, the nearest to the sink.

    The prices of a minimum cut sum up to the maximum flow (Ford and Fulkerson). The flow is
    increased along shortest paths (Dinic) until no path is left. This uses up the graph: it can be
    cut once.
    """
    self._left[source], self._left[sink]  # Adds both nodes, connected or not.
    while (distance := self._distances(source)).get(sink) is not None:
      untried = {node: list(ends) for node, ends in self._left.items()}
      while path := self._path(source, sink, distance, untried):
        width = min(self._left[start][end] for start, end in path)
        for start, end in path:
          self._left[start][end] -= width
          self._left[end][start] += width
    return self._reaching(sink)

  def _distances(self, source: Hashable) -> dict[Hashable, int]:
    """Return the number of edges from the source to each node that it still reaches."""
    distance = {source: 0}
    queue = collections.deque([source])
    while queue:
      node = queue.popleft()
      for end, left in self._left[node].items():
        if left > 0 and end not in distance:
          distance[end] = distance[node] + 1
          queue.append(end)
    return distance

  def _path(
    self,
    source: Hashable,
    sink: Hashable,
    distance: dict[Hashable, int],
    untried: dict[Hashable, list[Hashable]],
  ) -> list[tuple[Hashable, Hashable]]:
    """Return the edges of a shortest path with capacity left, or []; dead ends leave `untried`."""
    nodes = [source]
    while nodes[-1] != sink:
      node = nodes[-1]
      ends = untried[node]
      while ends:
        end = ends[-1]
        if self._left[node][end] > 0 and distance.get(end) == distance[node] + 1:
          nodes.append(end)
          break
        ends.pop()
      else:
        nodes.pop()
        if not nodes:
          return []
        untried[nodes[-1]].pop()
    return list(itertools.pairwise(nodes))

  def _reaching(self, sink: Hashable) -> set[Hashable]:
    """Return the nodes from which flow can still reach the sink."""
    found = {sink}
    queue = collections.deque([sink])
    while queue:
      node = queue.popleft()
      for start in self._left[node]:  # each edge has its reverse
        if start not in found and self._left[start][node] > 0:
          found.add(start)
          queue.append(start)
    return found
