"""Membranes in electron microscopy of fly neurons (ISBI-2012).

  python -m medseg_jax.main --config=configs/em.py --config.data.path=DIR

DIR holds train/images and train/labels: 30 neighbouring sections of 512x512.
Sections 0-23 train, 24-29 are held out, as one block: neighbours look alike,
so a random split would leak. Membrane Dice 0.8058, pixel accuracy 0.9232
(2026-11-26); 0.8104 and 0.9244 in 14 min 25 s on two CPU cores (2026-11-22).
"""

from configs import unet


def get_config():
  config = unet.get_config()
  config.num_steps = 800
  config.batch_size = 4
  config.patch_size = (256, 256)
  config.ema_decay = 0.99
  config.model.depth = 5
  # Cross-entropy weighs every pixel alike, which misses thin membranes.
  config.loss.cross_entropy = 0.7
  config.data.source = 'folder'
  config.data.path = '../shared/data/em'
  # The masks are 0 on membranes and 255 in cells.
  config.data.classes = ('cell', 'membrane')
  config.data.label_values = (255, 0)
  config.data.fold = 4
  config.data.fold_order = 'block'
  config.augment.flip_prob = 0.5
  config.augment.rot90_prob = 0.5
  config.augment.warp_prob = 0.5
  config.augment.rotation_degrees = 45.0
  config.augment.elastic_std = 4.0
  config.augment.elastic_spacing = 32.0
  config.augment.gamma_prob = 0.2
  config.augment.brightness_std = 0.1
  config.augment.noise_std = 0.1
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = 1e-4
  config.inference.patch_size = (512, 512)
  config.inference.batch_size = 1
  config.inference.mirror = True
  config.eval_every = 200
  config.checkpoint_every = 400
  return config
