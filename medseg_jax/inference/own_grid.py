"""From the slabs of the networks to what is kept, on the case's own grid."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.data.case import Case
from medseg_jax.data.resample import resample_linear_slabs
from medseg_jax.data.shear import from_upright, shear_of
from medseg_jax.inference import decoding, in_step
from medseg_jax.inference.decoding import pooled_logits, softmax

DrawPoints = Callable[[Case, tuple[slice, ...]], np.ndarray]


class Sample(NamedTuple):
  """Some voxels of a case and what decided over them.

  Attributes:
    points: int32 `[n, R]`, indices on the case's own grid.
    logits: float32 `[n, K]`; of several networks those of their mean
      probabilities, infinite where these are 0 or 1 (`decoding.pooled_logits`).
  """

  points: np.ndarray
  logits: np.ndarray


class Prediction(NamedTuple):
  """What the network says of a case, on the case's own grid.

  Attributes:
    case: as read.
    label: `[*S]` int16 class indices.
    probs: `[*S, K]` float16 where asked for, else None.
    sample: logits of some voxels where asked for, else None.
    entropy: `[*S]` float16 where asked for, else None; see `decoding.entropy`.
    disagreement: likewise; see `decoding.disagreement`.
  """

  case: Case
  label: np.ndarray
  probs: np.ndarray | None
  sample: Sample | None = None
  entropy: np.ndarray | None = None
  disagreement: np.ndarray | None = None


class Output(NamedTuple):
  """What is made of the logits; see `inference.cases.Settings`.

  Attributes:
    axes: of the case, in the order of the network's.
    decode: logits to class indices.
    probabilities: whether they are kept, too.
    activate: logits to probabilities; None for softmax.
    has_background: whether class 0 is 1 outside the box.
    temperature: what logits are divided by first, () for 1.
    points: draws the voxels whose logits are kept, or None.
    uncertainty: whether the entropy of the probabilities is kept.
    disagreement: whether that of the networks' members is, of which their
      slabs' last channel tells.
  """

  axes: tuple[int, ...]
  decode: Callable[[np.ndarray], np.ndarray]
  probabilities: bool
  activate: Callable[[np.ndarray], np.ndarray] | None
  has_background: bool
  temperature: tuple[float, ...] = ()
  points: DrawPoints | None = None
  uncertainty: bool = False
  disagreement: bool = False

  def probs_of(self, logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of logits `[..., K]`."""
    if self.temperature:
      logits = logits / np.asarray(self.temperature, logits.dtype)
    return (self.activate or softmax)(logits)


def on_own_grid(
  slabs_of_each: Sequence[Iterator[np.ndarray]],
  case: Case,
  *,
  box: tuple[slice, ...],
  sizes: Sequence[tuple[int, ...]],
  output: Output,
) -> Prediction:
  """Returns the prediction of a case, decoded slab by slab.

  Args:
    slabs_of_each: logits of each network, consecutive along its first axis.
    case: as read.
    box: of the case, what the networks see; the rest is background.
    sizes: of the image that each of them sees.
    output: what to make of it.
  """
  shape = case.image.shape[:-1]
  axes = output.axes or tuple(range(len(shape)))
  label = np.zeros(shape, np.int16)
  # Views: what is written to them lands in the case's own axes.
  into = label[box].transpose(axes)
  probs = None
  entropy = np.zeros(shape, np.float16) if output.uncertainty else None
  apart = np.zeros(shape, np.float16) if output.disagreement else None
  sampler = None
  if output.points is not None:
    corner = [side.indices(n)[0] for side, n in zip(box, shape, strict=True)]
    sampler = _Sampler(output.points(case, box), corner, axes)
  shear = shear_of(case.affine, axes, into.shape)
  upright = shear.upright if shear else into.shape
  own = [
    slabs if size == upright else resample_linear_slabs(slabs, size, upright)
    for slabs, size in zip(slabs_of_each, sizes, strict=True)
  ]
  if shear:
    own = [from_upright(slabs, shear) for slabs in own]
  alike = {
    'exclusive': output.activate is None,
    'has_background': output.has_background,
  }
  begin = 0
  alone = len(own) == 1
  together = ([s] for s in own[0]) if alone else in_step.common_planes(own)
  for slabs in together:
    planes = slice(begin, begin + len(slabs[0]))
    if apart is not None:
      mean = sum(slabs[1:], start=slabs[0]) / len(slabs)
      apart[box].transpose(axes)[planes] = decoding.disagreement(
        mean[..., :-1], mean[..., -1], **alike
      )
      slabs = [slab[..., :-1] for slab in slabs]
    if len(slabs) > 1:
      slab = pooled_logits(slabs, sigmoid=output.activate is not None)
    else:
      slab = slabs[0]
    del slabs
    into[planes] = output.decode(slab)
    if sampler is not None:
      sampler.take(slab, begin)
    begin = planes.stop
    if not output.probabilities and entropy is None:
      continue
    values = output.probs_of(slab)
    if entropy is not None:
      entropy[box].transpose(axes)[planes] = decoding.entropy(values, **alike)
    if not output.probabilities:
      continue
    if probs is None:
      probs = np.zeros((*shape, slab.shape[-1]), np.float16)
      if output.has_background:
        probs[..., 0] = 1
    into_probs = probs[box].transpose(*axes, len(shape))
    into_probs[planes] = values
  sample = None if sampler is None else sampler.sample()
  return Prediction(case, label, probs, sample, entropy, apart)


def only_measured(
  prediction: Prediction, *, has_background: bool
) -> Prediction:
  """Returns the prediction with background where nothing was measured.

  Args:
    prediction: any; what it holds may be changed.
    has_background: whether class 0 is 1 there.
  """
  if (measured := prediction.case.measured) is None:
    return prediction
  nothing = ~np.broadcast_to(measured, prediction.label.shape)
  for values in (
    prediction.label,
    prediction.probs,
    prediction.entropy,
    prediction.disagreement,
  ):
    if values is not None:
      values[nothing] = 0
  if prediction.probs is not None and has_background:
    prediction.probs[nothing, 0] = 1
  return prediction


class _Sampler:
  """Takes the logits of some voxels as the slabs come."""

  def __init__(
    self, points: np.ndarray, corner: Sequence[int], axes: tuple[int, ...]
  ):
    self._points = np.asarray(points, np.int32)
    self._inside = (self._points - np.asarray(corner))[:, list(axes)]
    self._logits = np.zeros((len(points), 0), np.float32)

  def take(self, slab: np.ndarray, begin: int) -> None:
    """Takes those in a slab whose first plane is number `begin`."""
    if not self._logits.shape[1]:
      self._logits = np.zeros((len(self._points), slab.shape[-1]), np.float32)
    first, *others = self._inside.T
    here = (begin <= first) & (first < begin + len(slab))
    at = (first[here] - begin, *(axis[here] for axis in others))
    self._logits[here] = slab[at]

  def sample(self) -> Sample:
    return Sample(self._points, self._logits)
