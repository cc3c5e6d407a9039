"""Several networks on the same cases, in step: planes of all at one time.

Each network has a stream of slabs of its own, of an image of its own, for it
may want another spacing or other tiles. Nothing is held but what the network
that is ahead has finished, a slab at most.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from medseg_jax import inference
from medseg_jax.inference.stitching import Slab

Case = TypeVar('Case')  # whatever the images are known by
Image = np.ndarray | jax.Array


def deal(
  cases: Iterator[tuple[Case, Sequence[Image]] | None], count: int
) -> list[Iterator[tuple[Case, Image] | None]]:
  """Returns an iterator over the images of each of `count` networks.

  The next case is asked for by the network that comes first; its images wait
  for the others, and are let go one by one.

  Args:
    cases: each with an image for each network. None, which all of them get,
      asks to finish the cases so far (see `inference.stream_slabs`).
    count: of the networks.
  """
  waiting: list[collections.deque[Any]] = [
    collections.deque() for _ in range(count)
  ]

  def of_one(own: collections.deque[Any]) -> Iterator[Any]:
    while True:
      if not own:
        try:
          dealt = next(cases)
        except StopIteration:
          return
        for i, queue in enumerate(waiting):
          queue.append(None if dealt is None else (dealt[0], dealt[1][i]))
        del dealt
      yield own.popleft()

  return [of_one(queue) for queue in waiting]


def by_case(
  streams: Sequence[Iterator[tuple[Case, Slab]]],
) -> Iterator[tuple[Case, list[Iterator[Image]]]]:
  """Yields `(case, the slabs of each network)`, as `inference.by_case` does.

  Args:
    streams: of the same cases in the same order.
  """
  each = [inference.by_case(stream) for stream in streams]
  # No zip: it would hold on to a case while the next one is waited for.
  while True:
    slabs = []
    for one in each:
      try:
        case, own = next(one)
      except StopIteration:
        return  # all of them end here
      slabs.append(own)
      del own
    yield case, slabs
    del case, slabs


def common_planes(
  streams: Sequence[Iterator[np.ndarray]],
) -> Iterator[list[np.ndarray]]:
  """Yields the same planes of every stream, as many as all have by then.

  Every stream is read to its end.

  Args:
    streams: slabs along axis 0, as high as they come, the same planes in all.

  Raises:
    ValueError: one has more planes than another.
  """
  held: list[np.ndarray | None] = [None] * len(streams)
  while True:
    for i, stream in enumerate(streams):
      if held[i] is None:
        held[i] = next(stream, None)
    there = [slab for slab in held if slab is not None]
    if not there:
      return
    if len(there) < len(streams):
      raise ValueError('slabs of several networks, but not of as many planes')
    depth = min(map(len, there))
    held = [slab[depth:] if len(slab) > depth else None for slab in there]
    there = [slab[:depth] for slab in there]
    yield there
    del there
