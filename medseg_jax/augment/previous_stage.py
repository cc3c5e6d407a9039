"""Random changes of what a network of a coarser stage has said, in a cascade.

The second network of a cascade sees the mask of the first one. That it does not
learn to copy it, training spoils the mask as nnU-Net does (Isensee et al.,
Nature Methods 2021, arXiv:1904.08128): first, with p = 0.4, morphology, where
each label with p = 0.5, in shuffled order, is dilated, eroded, opened or closed
by a ball whose radius is uniform in 1..8 voxels, and what it gains is taken
from the others; then, with p = 0.2, each label with p = 0.5 loses one random
connected component among those smaller than 15 % of the patch. It is for
training only: nothing else calls it.

A mask is an int label map, 0 the background: no voxel has two labels, and none
gets two by this. `draw_changes` decides, `apply_changes` does it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from medseg_jax.augment import morphology

MORPHOLOGY_PROB, REMOVAL_PROB, LABEL_PROB = 0.4, 0.2, 0.5
RADII = (1.0, float(morphology.MAX_RADIUS))
NUM_OPERATIONS = 4
LARGEST_PERCENT = 15  # of the patch, which no removed component reaches


class Changes(NamedTuple):
  """What is to be done to a mask of `F` foreground labels.

  Attributes:
    morphs: bool scalar.
    order: `[F]` int32, the labels from 1 on, as they take their turns.
    morphed: `[F]` bool, of each turn, where `morphs`.
    operations: `[F]` int32, of each turn, see `morphology`.
    radii: `[F]` float32 voxels, of each turn.
    removes: bool scalar.
    reduced: `[F]` bool, the labels that lose a component, where `removes`.
    choices: `[F]` float32 in 0..1, which component of each label.
  """

  morphs: jax.Array
  order: jax.Array
  morphed: jax.Array
  operations: jax.Array
  radii: jax.Array
  removes: jax.Array
  reduced: jax.Array
  choices: jax.Array


def draw_changes(key: jax.Array, num_labels: int) -> Changes:
  """Returns random changes of a mask with `num_labels` foreground labels."""
  keys = jax.random.split(key, 8)
  each = (num_labels,)
  low, high = RADII
  return Changes(
    morphs=jax.random.bernoulli(keys[0], MORPHOLOGY_PROB),
    order=1 + jax.random.permutation(keys[1], num_labels),
    morphed=jax.random.bernoulli(keys[2], LABEL_PROB, each),
    operations=jax.random.randint(keys[3], each, 0, NUM_OPERATIONS),
    radii=jax.random.uniform(keys[4], each, minval=low, maxval=high),
    removes=jax.random.bernoulli(keys[5], REMOVAL_PROB),
    reduced=jax.random.bernoulli(keys[6], LABEL_PROB, each),
    choices=jax.random.uniform(keys[7], each),
  )


def apply_changes(changes: Changes, mask: jax.Array) -> jax.Array:
  """Returns the mask `[*S]` int of one example with changes.

  Under `vmap` all of them would be computed, drawn or not.
  """
  num_labels = changes.order.shape[0]

  def turn(i: jax.Array, mask: jax.Array) -> jax.Array:
    label = changes.order[i]
    return lax.cond(
      changes.morphed[i] & (mask == label).any(),
      lambda: _morph(mask, label, changes.operations[i], changes.radii[i]),
      lambda: mask,
    )

  def reduce(i: jax.Array, mask: jax.Array) -> jax.Array:
    return lax.cond(
      changes.reduced[i] & (mask == i + 1).any(),
      lambda: remove_component(mask, i + 1, changes.choices[i]),
      lambda: mask,
    )

  mask = lax.cond(
    changes.morphs,
    lambda: lax.fori_loop(0, num_labels, turn, mask),
    lambda: mask,
  )
  return lax.cond(
    changes.removes,
    lambda: lax.fori_loop(0, num_labels, reduce, mask),
    lambda: mask,
  )


def random_changes(
  key: jax.Array, masks: jax.Array, num_labels: int
) -> jax.Array:
  """Returns masks `[B, *S]` int, each changed for itself.

  Args:
    key: random key.
    masks: 0 .. num_labels.
    num_labels: without the background.
  """
  keys = jax.random.split(key, masks.shape[0])
  drawn = jax.vmap(lambda key: draw_changes(key, num_labels))(keys)

  def own(drawn: Changes, masks: jax.Array) -> jax.Array:
    # Not by vmap: what is not drawn is not to be computed.
    return lax.map(lambda one: apply_changes(*one), (drawn, masks))

  if 'data' not in jax.sharding.get_abstract_mesh().axis_names:
    return own(drawn, masks)
  # Each device does its own examples, those of one spatial group the same.
  spec = PartitionSpec('data')
  return jax.shard_map(own, in_specs=(spec, spec), out_specs=spec)(drawn, masks)


def _morph(
  mask: jax.Array, label: jax.Array, operation: jax.Array, radius: jax.Array
) -> jax.Array:
  before = mask == label
  after = morphology.morphed(before, operation, radius)
  return jnp.where(after, label, jnp.where(before, 0, mask))


def remove_component(
  mask: jax.Array, label: jax.Array, choice: jax.Array
) -> jax.Array:
  """Returns the mask without one component of a label that is small enough.

  Args:
    mask: `[*S]` int.
    label: whose components are chosen from, all equally likely.
    choice: in 0..1, which of them.
  """
  numbers = morphology.components(mask == label)
  numbered = numbers.ravel()
  sizes = jnp.zeros(mask.size, jnp.int32)
  sizes = sizes.at[jnp.maximum(numbered - 1, 0)].add(numbered > 0)
  # In whole numbers: fewer voxels than that share of all.
  limit = -(-LARGEST_PERCENT * mask.size // 100)
  small = (sizes > 0) & (sizes < limit)
  count = small.sum()
  place = jnp.minimum((choice * count).astype(jnp.int32), count - 1)
  chosen = 1 + jnp.argmax(jnp.cumsum(small) > place)
  return jnp.where((count > 0) & (numbers == chosen), 0, mask)
