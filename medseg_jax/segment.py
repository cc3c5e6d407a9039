"""From cases to masks on their own grid: what evaluation and prediction share.
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from medseg_jax import inference
from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import (
  Preprocessing,
  preprocess_image,
  resize_linear,
)
from medseg_jax.errors import InputError


def predict_cases(
  predict_fn: Callable[[jax.Array], jax.Array],
  cases: Iterable[Case],
  *,
  preprocessing: Preprocessing,
  channels: int,
  patch_size: tuple[int, ...],
  overlap: float,
  batch_size: int,
) -> Iterator[tuple[Case, np.ndarray]]:
  """Yields each case with its predicted label, `[*S]` on the case's own grid.

  Images that fit into one tile share a batch; larger ones are tiled; smaller
  ones are filled up with 0, like the patches of training. Where
  the preprocessing resized the image, the logits are brought back linearly
  before the largest one is chosen.

  Args:
    predict_fn: `[N, *patch_size, C] -> [N, *patch_size, num_classes]`.
    cases: read one after the other, `batch_size` of them held at a time.
    preprocessing: as in training.
    channels: of the training images; a grey image is repeated to as many.
    patch_size: of the tiles.
    overlap: of neighbouring tiles.
    batch_size: N, tiles predicted at once.
  """
  waiting = []
  for case in cases:
    image = preprocess_image(match_channels(case, channels), preprocessing)
    if all(np.less_equal(image.shape[:-1], patch_size)):
      waiting.append((case, image))
      if len(waiting) == batch_size:
        yield from _predict_small(predict_fn, waiting, patch_size, batch_size)
        waiting = []
      continue
    yield from _predict_small(predict_fn, waiting, patch_size, batch_size)
    waiting = []
    logits = inference.sliding_window(
      predict_fn, image, patch_size, overlap=overlap, batch_size=batch_size
    )
    yield case, _label_on_grid(logits, case)
  yield from _predict_small(predict_fn, waiting, patch_size, batch_size)


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


def _predict_small(predict_fn, pairs, patch_size, batch_size):
  """Yields what fits into one tile each, from one batch."""
  if not pairs:
    return
  padded = [inference.pad_to(image, patch_size) for _, image in pairs]
  tiles = np.stack([image for image, _ in padded])
  filler = [(0, batch_size - len(tiles))] + [(0, 0)] * (tiles.ndim - 1)
  logits = np.asarray(predict_fn(np.pad(tiles, filler)))
  for i, ((case, image), (_, origin)) in enumerate(
    zip(pairs, padded, strict=True)
  ):
    inside = tuple(
      slice(o, o + n) for o, n in zip(origin, image.shape[:-1], strict=True)
    )
    yield case, _label_on_grid(logits[i][inside], case)


def _label_on_grid(logits, case: Case) -> np.ndarray:
  shape = case.image.shape[:-1]
  if logits.shape[:-1] != shape:
    logits = resize_linear(np.asarray(logits), shape)
  return np.asarray(logits.argmax(-1)).astype(np.int32)
