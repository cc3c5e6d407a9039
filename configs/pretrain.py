"""Pretraining on volumes without labels, for a training to begin with.

  python -m medseg_jax.main --config=configs/pretrain.py --config.data.path=DIR
  python -m medseg_jax.main --config=configs/auto.py --config.data.path=LABELLED
    --config.init_from=runs/pretrain/model

DIR is a folder of NIfTI scans, or a data set, whose labels are not read. The
network planned from them, encoder and decoder, learns to restore three quarters
of each patch, hidden in blocks (masked autoencoding: He et al. 2022; in U-Nets
Wald et al. 2025): the mean squared error of the hidden voxels, in units of the
standardised image. `config.loss` has no part in it. No labels: no foreground to
take intensities from, so those of all voxels that are not 0 are planned with,
and patches lie anywhere. `pretrain.py:2d` pretrains the 2-D network. The plan
moves with the weights; not yet measured on a GPU.
"""

from configs import auto


def get_config(configuration=''):
  config = auto.get_config(configuration)
  config.pretrain.mask_share = 0.75
  config.data.fold = 'all'  # nothing is scored
  config.data.foreground_share = 0.0
  config.eval_every = 0

  # Mirrored and cut out anywhere, and otherwise as they are: what is drawn anew
  # each time is what is hidden.
  config.augment.warp_prob = 0.0
  config.augment.brightness_prob = 0.0
  config.augment.contrast_prob = 0.0
  config.augment.gamma_prob = 0.0
  config.augment.gamma_invert_prob = 0.0
  config.augment.noise_prob = 0.0
  config.augment.blur_prob = 0.0
  config.augment.low_resolution_prob = 0.0
  return config
