"""A folder of NIfTI scans to a trained model, by nnU-Net's rules, on a GPU.

  python -m medseg_jax.main --config=configs/auto.py --config.data.path=DIR

DIR is a data set of the Medical Segmentation Decathlon, an nnU-Net raw folder,
or images/ and labels/ of NIfTI pairs. Spacing, patch, batch and network are
planned from the data. `auto.py:2d` trains the 2-D network on slices,
`auto.py:3d_lowres` the one at low resolution where there is one. 1000 epochs
of 250 steps; not yet measured on a GPU.
"""

from configs import unet


def get_config(configuration=''):
  config = unet.get_config()
  config.num_steps = 250_000
  config.dtype = 'bfloat16'
  # Left open, for the plan to fill in.
  config.plan.configuration = configuration
  config.batch_size = 0
  config.patch_size = ()
  config.model.depth = 0
  config.model.features = 0
  config.augment.rotation_degrees = None

  config.model.norm = 'instance'
  config.model.activation = 'leaky_relu'
  config.model.down = 'stride'
  config.model.deep_supervision = True
  config.overlap.include_background = False
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.01
  config.optimizer.momentum = 0.99
  config.optimizer.weight_decay = 3e-5
  config.optimizer.grad_clip_norm = 12.0
  config.schedule.name = 'poly'
  config.schedule.warmup_fraction = 0.0

  config.data.source = 'volumes'
  config.data.foreground_share = 0.33

  config.augment.flip_prob = 0.5
  config.augment.warp_prob = 1.0
  config.augment.rotation_prob = 0.2
  config.augment.scale_prob = 0.2
  config.augment.scale_range = (0.7, 1.4)
  config.augment.noise_prob = 0.1
  config.augment.noise_std = 0.1
  config.augment.blur_prob = 0.2
  config.augment.blur_channel_prob = 0.5
  config.augment.brightness_prob = 0.15
  config.augment.brightness_std = 0.0
  config.augment.brightness_range = (0.75, 1.25)
  config.augment.contrast_prob = 0.15
  config.augment.contrast_range = (0.75, 1.25)
  config.augment.contrast_clip = True
  config.augment.low_resolution_prob = 0.25
  config.augment.low_resolution_channel_prob = 0.5
  config.augment.gamma_invert_prob = 0.1
  config.augment.gamma_prob = 0.3
  config.augment.gamma_range = (0.7, 1.5)
  config.augment.gamma_keep_stats = True

  config.inference.mirror = True
  config.log_every = 250
  config.eval_every = 12_500
  config.checkpoint_every = 2500
  return config
