"""From logits to labels and probabilities, of classes or of regions.

Classes exclude each other: the largest logit wins. Regions overlap, each made
of some of the classes: a brain tumour, say, has the classes 1 oedema, 2 core
and 3 enhancing core, and the regions (1, 2, 3), the whole tumour, (2, 3) and
(3,). A network with sigmoid outputs predicts every region by itself.
"""

from collections.abc import Sequence

import numpy as np


def argmax(logits: np.ndarray) -> np.ndarray:
  """Returns the class of the largest logit, `[*S, K] -> [*S]`."""
  return logits.argmax(-1)


def softmax(logits: np.ndarray) -> np.ndarray:
  """Returns the probabilities of exclusive classes, `[*S, K] -> [*S, K]`."""
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def labels_from_regions(logits: np.ndarray, order: Sequence[int]) -> np.ndarray:
  """Returns the label map, int16 `[*S]`, that the regions paint over another.

  A voxel starts as background, 0. Each region in turn, where its logit is
  positive (its probability more than one half), makes it the class `order[r]`;
  so a region that lies inside another comes after it.

  Args:
    logits: `[*S, R]`, finite.
    order: the class index of each of the R regions.

  Raises:
    ValueError: where there is not one class for each region.
  """
  if len(order) != logits.shape[-1]:
    raise ValueError(
      f'{logits.shape[-1]} regions need as many classes to '
      f'paint, found {tuple(order)}'
    )
  label = np.zeros(logits.shape[:-1], np.int16)
  for r, index in enumerate(order):
    label[logits[..., r] > 0] = index
  return label


def sigmoid(logits: np.ndarray) -> np.ndarray:
  """Returns the probability of each region by itself, of the same shape."""
  return 0.5 + 0.5 * np.tanh(0.5 * logits)  # without an overflow anywhere


def sigmoid_of_classes(logits: np.ndarray) -> np.ndarray:
  """Returns probabilities of a sigmoid network's classes, of the same shape.

  Args:
    logits: `[*S, K]`, that of the background, class 0, always 0.

  Returns:
    The sigmoid of each foreground class; 1 minus the largest of them for the
    background, so that the most probable class is that of the largest logit.
  """
  probs = sigmoid(logits)
  probs[..., 0] = 1 - probs[..., 1:].max(-1)
  return probs


def entropy(
  probs: np.ndarray, *, exclusive: bool, has_background: bool
) -> np.ndarray:
  """Returns how unsure probabilities are, `[*S, K] -> [*S]`, 0 to 1.

  Of classes that exclude each other the entropy over that of K equal
  probabilities (Shannon 1948, "A mathematical theory of communication"). What
  is decided by itself, region by region, has one each, between being there and
  not; then the largest of these counts.

  Args:
    probs: of classes, or regions.
    exclusive: whether they add up to 1.
    has_background: where they do not, whether class 0 is what the others leave.
  """
  if exclusive:
    return _entropy_terms(probs).sum(-1) / np.log(max(probs.shape[-1], 2))
  probs = probs[..., 1:] if has_background else probs
  terms = _entropy_terms(probs) + _entropy_terms(1 - probs)
  return terms.max(-1) / np.log(2)


def disagreement(
  logits: np.ndarray,
  normaliser: np.ndarray,
  *,
  exclusive: bool,
  has_background: bool,
) -> np.ndarray:
  """Returns how far several networks' probabilities lie apart, `[*S]`, 0 to 1.

  1 minus the affinity of their distributions, the sum over classes of the
  geometric mean of what each network gives them: 0 where all say the same, 1
  where nothing is possible for all (Matusita 1967, "On the notion of affinity
  of several distributions and some of its applications"; of two it is
  Bhattacharyya's). What is decided by itself, region by region, has the product
  of the affinities of each.

  Args:
    logits: `[*S, K]`, the means of those of the networks.
    normaliser: `[*S]`, the mean of what `network.create_predict` says of each.
    exclusive: whether the classes exclude each other.
    has_background: where they do not, whether class 0 is what the others leave.
  """
  if exclusive:
    top = logits.max(-1, keepdims=True)
    common = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
  else:
    own = logits[..., 1:] if has_background else logits
    common = np.logaddexp(0, own).sum(-1)
  return -np.expm1(np.minimum(common - normaliser, 0))


def _entropy_terms(probs: np.ndarray) -> np.ndarray:
  return -probs * np.log(np.where(probs > 0, probs, 1))


def pooled_logits(
  logits: Sequence[np.ndarray], *, sigmoid: bool = False
) -> np.ndarray:
  """Returns logits whose probabilities are the means of several networks'.

  What decodes the logits of one network decodes these, too: the class of the
  largest mean probability wins, and a region is there where its mean
  probability is more than one half.

  Args:
    logits: `[*S, K]` float of each network.
    sigmoid: whether each value has a probability by itself; otherwise classes
      exclude each other.

  Returns:
    `[*S, K]`, infinite where all networks are as sure as numbers can tell.
  """
  pooled = np.empty_like(logits[0])
  for i in range(len(pooled)):  # a plane at a time spares memory
    pooled[i] = _pooled([each[i] for each in logits], sigmoid)
  return pooled


def _pooled(logits: Sequence[np.ndarray], sigmoid: bool) -> np.ndarray:
  total, against = np.zeros(2, logits[0].dtype)
  with np.errstate(divide='ignore'):
    if not sigmoid:
      for each in logits:
        total = total + softmax(each)
      return np.log(total / len(logits))
    for each in logits:
      small = np.exp(-np.abs(each))
      yes, no = 1 / (1 + small), small / (1 + small)
      total = total + np.where(each > 0, yes, no)
      against = against + np.where(each > 0, no, yes)
    return np.log(total) - np.log(against)
