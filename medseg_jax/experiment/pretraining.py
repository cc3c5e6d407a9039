"""Pretraining without labels: masked autoencoding, where a config asks for it.

`config.pretrain.mask_share` above 0 makes a training one: of volumes without
labels, on which the network, the same U-Net with its decoder, learns to restore
what is hidden of each patch (`training.reconstruction`). The decoder is trained
along, since `config.init_from` keeps it. Its last layer has an output for each
channel of the image, and is all that a segmentation does not take over.
"""

import functools
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from medseg_jax.models import Model
from medseg_jax.runtime.errors import InputError, quote
from medseg_jax.training import reconstruction
from medseg_jax.training.reconstruction import Batch

# A block is what a voxel of the lowest resolution stands for, and thus follows
# the spacing; but no longer than this along an axis, as are those that nnssl,
# the code of Wald et al., hides in patches of 160 voxels.
LONGEST_BLOCK = 16
OUTPUT = 'reconstruction'


def is_asked(config: ConfigDict) -> bool:
  """Returns whether a training is a pretraining, or a model was made by one."""
  return config.pretrain.mask_share != 0


def check(config: ConfigDict) -> None:
  """Raises InputError where a pretraining is asked for what it cannot do.

  Args:
    config: as the user has it.
  """
  share, data = config.pretrain.mask_share, config.data
  if not 0 < share < 1:
    raise InputError(
      f'config.pretrain.mask_share is {share}; allowed is a share of the '
      'blocks, above 0 and below 1, or 0 for a training with labels'
    )
  if data.source not in ('volumes', 'dicom'):
    raise InputError(
      f'config.data.source is {data.source!r} with config.pretrain.mask_share '
      f"{share:g}; allowed are 'volumes' and 'dicom'"
    )
  if data.fold != 'all':
    raise InputError(
      f'config.data.fold is {data.fold}, but a pretraining '
      f'(config.pretrain.mask_share {share:g}) scores nothing, so that nothing '
      "is held out; allowed is 'all'; leave out of the folder what shall not "
      'be seen'
    )
  for key, nothing in (
    ('classes', ()),
    ('label_values', ()),
    ('instances', ''),
    ('foreground_share', 0.0),
  ):
    if data[key] != nothing:
      raise InputError(
        f'config.data.{key} is {quote(data[key])}, but a pretraining '
        f'(config.pretrain.mask_share {share:g}) reads no labels; leave it '
        f'out, or set {nothing!r}'
      )


def refuse_scores(config: ConfigDict) -> None:
  """Raises InputError where what is to be scored is a pretraining."""
  if is_asked(config):
    raise InputError(
      f'config.pretrain.mask_share is {config.pretrain.mask_share:g}, but a '
      'pretraining has no labels to be scored with; allowed is --mode=train'
    )


def refuse_as_segmentation(config: ConfigDict, where: object) -> None:
  """Raises InputError where a model restores images and segments nothing.

  Args:
    config: of its training.
    where: the model, for the message.
  """
  if is_asked(config):
    raise InputError(
      f'{where}: was pretrained without labels (config.pretrain.mask_share '
      f'{config.pretrain.mask_share:g}) and segments nothing; train on labels '
      'with it as config.init_from, and use the model of that'
    )


def output_names(channel_names: Sequence[str]) -> tuple[str, ...]:
  """Returns what the outputs of the network are called: no class's names."""
  return tuple(f'restored {name}' for name in channel_names)


def block_size(config: ConfigDict, model: Model) -> tuple[int, ...]:
  """Returns the size of the blocks that are hidden, in voxels.

  Raises:
    InputError: the patch has too few of them to hide some and show others.
  """
  patch, share = tuple(config.patch_size), config.pretrain.mask_share
  cell = model.divisor(len(patch))
  block = tuple(min(size, LONGEST_BLOCK) for size in cell)
  number = reconstruction.num_blocks(patch, block)
  if not 0 < reconstruction.num_hidden(patch, block, share) < number:
    raise InputError(
      f'config.pretrain.mask_share is {share:g}, but a patch of {patch} has '
      f'{number} blocks of {block}, of which some are to be hidden and some '
      'seen; allowed is a larger config.patch_size, or another share'
    )
  return block


def hide_fn_of(
  config: ConfigDict, model: Model
) -> Callable[[jax.Array, Batch], Batch]:
  """Returns `(key, batch) -> batch`, see `reconstruction.hide`."""
  return functools.partial(
    reconstruction.hide,
    block=block_size(config, model),
    share=config.pretrain.mask_share,
  )


def describe(config: ConfigDict) -> str:
  """Returns a line on what is learnt, in the place of that on the classes."""
  return (
    f'pretrain  without labels: {config.pretrain.mask_share:.0%} of each patch '
    'is hidden, and restored'
  )
