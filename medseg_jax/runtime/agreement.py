"""What all processes of a run decide alike, while the devices work."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medseg_jax.runtime import multihost


class Agreement:
  """Numbers that all processes agree on while the devices work.

  Two calls late where there are several processes, so that none waits.

  Args:
    mesh: of all devices.
  """

  def __init__(self, mesh: Mesh):
    self._mesh = mesh
    self._offered: collections.deque = collections.deque()
    self._largest: Callable[[Any], Any] | None = None

  def largest(
    self, own: Sequence[int], at_first: Sequence[int]
  ) -> tuple[int, ...]:
    """Returns the largest that any process offered, two calls ago.

    All processes call it as often.

    Args:
      own: the numbers that this process offers, int32.
      at_first: what is returned until there are any.
    """
    if multihost.count() == 1:
      return tuple(own)
    with jax.transfer_guard('allow'):
      offer = self._offer(np.asarray(own, np.int32))
      if self._largest is None:
        self._largest = self._compile(offer)
      self._offered.append(self._largest(offer))
    if len(self._offered) <= 2:
      return tuple(at_first)
    agreed = jax.device_get(self._offered.popleft())
    return tuple(int(number) for number in agreed)

  def _offer(self, own):
    layout = NamedSharding(
      self._mesh, PartitionSpec(tuple(self._mesh.axis_names))
    )
    return jax.make_array_from_callback(
      (self._mesh.size, len(own)), layout, lambda index: own[None, index[1]]
    )

  def _compile(self, offer):
    everywhere = NamedSharding(self._mesh, PartitionSpec())
    largest = jax.jit(lambda x: x.max(0), out_shardings=everywhere)
    return largest.lower(offer).compile()
