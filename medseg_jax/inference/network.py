"""The trained network on a batch of tiles."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from medseg_jax.data import previous_stage
from medseg_jax.models import Model


def create_predict(
  *,
  model: Model,
  sigmoid: bool = False,
  mirror_axes: Sequence[int] = (),
  num_members: int = 1,
  num_labels: int = 0,
  normaliser: str = '',
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns `(variables, image [N, *S, C]) -> logits [N, *S, num_classes]`.

  Args:
    model: applied with `train=False`.
    sigmoid: the model has a logit for each foreground class only; a background
      of 0 is put before them, so that the largest logit wins as elsewhere.
    mirror_axes: axes of S, counted from 0; the logits are averaged over all
      mirrorings of these.
    num_members: weights of so many trainings, whose logits are averaged; where
      there are several each array of the variables has them on a first axis.
    num_labels: of a cascade, in whose image the last channel is the mask of the
      coarser network: it becomes a channel for each label but the background.
    normaliser: 'softmax' or 'sigmoid', where the logits get one more channel,
      the mean over the members of the logarithm of what turns powers of their
      logits into such probabilities; see `decoding.disagreement`.
  """

  def logits_of(variables: Any, image: jax.Array) -> jax.Array:
    logits = model.apply(variables, image, train=False)
    return jnp.asarray(logits, jnp.float32)

  def mirrored(variables: Any, image: jax.Array) -> jax.Array:
    # A loop, so that the network is compiled once and not for each mirroring.
    sets = flip_sets(mirror_axes)
    flips = jnp.array([[a in s for a in range(image.ndim - 2)] for s in sets])

    def add(total: jax.Array, flip: jax.Array) -> tuple[jax.Array, None]:
      logits = logits_of(variables, _flip_where(image, flip))
      return total + _flip_where(logits, flip), None

    start = jax.eval_shape(logits_of, variables, image)
    total, _ = lax.scan(add, jnp.zeros(start.shape, start.dtype), flips)
    return total / len(sets)

  predicted = mirrored if mirror_axes else logits_of

  def one_member(variables: Any, image: jax.Array) -> jax.Array:
    logits = predicted(variables, image)
    if not normaliser:
      return logits
    if normaliser == 'softmax':
      own = jax.nn.logsumexp(logits, -1)
    else:
      own = jax.nn.softplus(logits).sum(-1)
    return jnp.concatenate([logits, own[..., None]], -1)

  def averaged(variables: Any, image: jax.Array) -> jax.Array:
    def add(total: jax.Array, member: Any) -> tuple[jax.Array, None]:
      return total + one_member(member, image), None

    first = jax.tree.map(lambda stacked: stacked[0], variables)
    start = jax.eval_shape(one_member, first, image)
    total, _ = lax.scan(add, jnp.zeros(start.shape, start.dtype), variables)
    return total / num_members

  def predict(variables: Any, image: jax.Array) -> jax.Array:
    image = image.astype(jnp.float32)
    if num_labels:
      image = previous_stage.to_channels(image, num_labels, jnp)
    network = averaged if num_members > 1 else one_member
    logits = network(variables, image)
    if sigmoid:
      logits = jnp.pad(logits, [(0, 0)] * (image.ndim - 1) + [(1, 0)])
    return logits

  return predict


def _flip_where(x: jax.Array, flip: jax.Array) -> jax.Array:
  """Returns `x` `[N, *S, C]` mirrored along the axes where `flip` is true."""
  for axis in range(1, x.ndim - 1):
    x = jnp.where(flip[axis - 1], jnp.flip(x, axis), x)
  return x


def flip_sets(axes: Sequence[int]) -> list[tuple[int, ...]]:
  """Returns all subsets of `axes`: 2 ** len(axes) of them."""
  sets: list[tuple[int, ...]] = [()]
  for axis in axes:
    sets += [(*before, axis) for before in sets]
  return sets
