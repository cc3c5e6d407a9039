"""From cases to masks on their own grid, for evaluation and prediction."""

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from medseg_jax import inference
from medseg_jax.data.case import Case
from medseg_jax.data.precision import compact
from medseg_jax.data.preprocess import Preprocessing, preprocess
from medseg_jax.data.resample import resample_linear_slabs
from medseg_jax.inference.decoding import argmax, softmax
from medseg_jax.runtime.errors import InputError

# While an image of more values is predicted, the next case is not read yet:
# two such would need too much memory.
LARGE_IMAGE = 2**27


class Prediction(NamedTuple):
  """What the network says of a case, on the case's own grid.

  Attributes:
    case: as read.
    label: `[*S]` int16 class indices.
    probs: `[*S, K]` float16 where asked for, else None.
  """

  case: Case
  label: np.ndarray
  probs: np.ndarray | None


def predict_cases(
  predict_fn: Callable[[jax.Array], jax.Array],
  cases: Iterable[Case],
  *,
  preprocessing: Preprocessing,
  channels: int,
  patch_size: tuple[int, ...],
  overlap: float,
  batch_size: int,
  decode: Callable[[np.ndarray], np.ndarray] = argmax,
  probabilities: bool = False,
  activate: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[Prediction]:
  """Yields each case's prediction, in order.

  Images larger than a tile are tiled, smaller ones filled up with 0 like the
  patches of training; tiles of several small cases share a batch. Where the
  preprocessing changed the grid, the logits are brought back linearly before
  they are decoded, slab by slab: they never exist as a whole. What the
  preprocessing cropped away is background.

  The next case is read and preprocessed by another thread meanwhile, unless it
  would need too much memory.

  Args:
    predict_fn: `[N, *patch_size, C] -> [N, *patch_size, K]`.
    cases: read one after the other.
    preprocessing: as in training.
    channels: of the training images; a grey image is repeated to as many.
    patch_size: of the tiles; of a 2-D network, two numbers for volumes too.
    overlap: of neighbouring tiles.
    batch_size: N, tiles predicted at once.
    decode: logits `[..., K]` to class indices `[...]`, both NumPy.
    probabilities: whether to keep them; `K` half floats a voxel.
    activate: logits `[..., K]` to probabilities of regions, which overlap and
      are all 0 outside the crop. None for exclusive classes: softmax, and 1 for
      class 0 outside.

  Raises:
    InputError: a case does not suit the preprocessing or the network.
  """
  stream = inference.stream_slabs(
    predict_fn,
    _entered(cases, preprocessing, channels),
    patch_size,
    overlap=overlap,
    batch_size=batch_size,
  )
  for entered, slabs in inference.by_case(stream):
    yield _on_own_grid(
      map(np.asarray, slabs),
      entered,
      axes=preprocessing.axes,
      decode=decode,
      probabilities=probabilities,
      activate=activate,
    )
    del entered, slabs  # the case, before the next image is waited for


def match_channels(case: Case, channels: int) -> Case:
  """Returns the case with as many channels as the model takes.

  Raises:
    InputError: it has another number, and is not grey.
  """
  found = case.image.shape[-1]
  if found == 1 < channels:
    return case._replace(image=np.repeat(case.image, channels, -1))
  if found != channels:
    raise InputError(
      f'{case.name} has {found} channels; the model was trained on {channels}'
    )
  return case


class _Entered(NamedTuple):
  """A case whose image is with the network."""

  case: Case
  box: tuple[slice, ...]
  size: tuple[int, ...]  # of the image that the network sees


def _entered(
  cases: Iterable[Case], preprocessing: Preprocessing, channels: int
) -> Iterator[tuple[_Entered, np.ndarray]]:
  """Yields each case with its image for the network, read one ahead."""
  cases = iter(cases)

  def prepare() -> tuple[_Entered, np.ndarray] | None:
    case = next(cases, None)
    if case is None:
      return None
    # The label stays on its own grid, so resampling it would be in vain.
    bare = match_channels(case, channels)._replace(label=None)
    prepared = preprocess(bare, preprocessing)
    image = compact(prepared.image, prepared.slack)  # as training saw it
    return _Entered(case, prepared.box, image.shape[:-1]), image

  with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
    ahead = pool.submit(prepare)
    while (result := ahead.result()) is not None:
      large = result[1].size > LARGE_IMAGE
      if not large:
        ahead = pool.submit(prepare)
      held = [result]
      del result
      yield held.pop()  # the image is not to be held here, too
      if large:
        ahead = pool.submit(prepare)


def _on_own_grid(
  slabs: Iterator[np.ndarray],
  entered: _Entered,
  *,
  axes: tuple[int, ...],
  decode: Callable[[np.ndarray], np.ndarray],
  probabilities: bool,
  activate: Callable[[np.ndarray], np.ndarray] | None,
) -> Prediction:
  case, box, size = entered
  shape = case.image.shape[:-1]
  axes = axes or tuple(range(len(shape)))
  label = np.zeros(shape, np.int16)
  # Views: what is written to them lands in the case's own axes.
  into = label[box].transpose(axes)
  probs = None
  if into.shape != tuple(size):
    slabs = resample_linear_slabs(slabs, size, into.shape)
  begin = 0
  for slab in slabs:
    planes = slice(begin, begin + len(slab))
    into[planes] = decode(slab)
    begin = planes.stop
    if not probabilities:
      continue
    if probs is None:
      probs = np.zeros((*shape, slab.shape[-1]), np.float16)
      if activate is None:
        probs[..., 0] = 1
    into_probs = probs[box].transpose(*axes, len(shape))
    into_probs[planes] = (activate or softmax)(slab)
  return Prediction(case, label, probs)
