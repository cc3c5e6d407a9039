"""What the coarser network of a cascade says, on the grid of the finer one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from medseg_jax import inference
from medseg_jax.data.case import Case
from medseg_jax.data.precision import compact
from medseg_jax.data.preprocess import Preprocessing, preprocess
from medseg_jax.inference.decoding import argmax
from medseg_jax.inference.own_grid import Output, on_own_grid


def mask_of_case(
  predict_fn: Callable[[jax.Array], jax.Array],
  case: Case,
  shape: tuple[int, ...],
  *,
  preprocessing: Preprocessing,
  patch_size: tuple[int, ...],
  overlap: float,
  batch_size: int,
  decode: Callable[[np.ndarray], np.ndarray] = argmax,
) -> np.ndarray:
  """Returns the mask of a case, class indices uint8 `[*shape]`.

  The logits are resampled linearly and then decoded, slab by slab, as nnU-Net
  does (Isensee et al., Nature Methods 2021).

  Args:
    predict_fn: of the coarser network, see `inference.sliding_window`.
    case: its image as the network takes it, all channels.
    shape: of the image that the finer network sees, of the same crop and axes.
    preprocessing: of the coarser network.
    patch_size: of its tiles.
    overlap: of neighbouring tiles.
    batch_size: tiles at once.
    decode: logits `[..., K]` to class indices `[...]`.

  Raises:
    InputError: the case does not suit the preprocessing.
  """
  prepared = preprocess(case._replace(label=None), preprocessing)
  image = compact(prepared.image, prepared.slack)
  del prepared
  size = image.shape[:-1]
  slabs = inference.sliding_slabs(
    predict_fn, image, patch_size, overlap=overlap, batch_size=batch_size
  )
  # The finer image in the place of the case's own: it has no voxels itself.
  # Where the case is sheared, both networks see it at right angles.
  onto = case._replace(
    image=np.broadcast_to(np.int8(0), (*shape, 1)), affine=None
  )
  label = on_own_grid(
    [map(np.asarray, slabs)],
    onto,
    box=tuple(slice(0, n) for n in shape),
    sizes=[size],
    output=Output((), decode, False, None, False),
  ).label
  return label.astype(np.uint8)


_SETTINGS = ('preprocessing', 'patch_size', 'overlap', 'batch_size', 'decode')


def settings_of(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what of `inference.cases.Settings` is for `mask_of_case`."""
  return {key: settings[key] for key in _SETTINGS if key in settings}
