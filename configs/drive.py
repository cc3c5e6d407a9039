"""Vessels in colour photographs of the retina (DRIVE), official split.

  python -m medseg_jax.main --config=configs/drive.py --config.data.path=DIR

DIR holds {train,test}/{images,labels,fov}: 20 images of 565x584 each. All 20
training images train, so the last weights are evaluated, over the whole image
and inside the camera's field of view. Vessel Dice 0.8252 and 0.8254
(2026-11-26); 0.8255 and 0.8257 in 16 min 18 s on two CPU cores (2026-11-22).
"""

from configs import unet


def get_config():
  config = unet.get_config()
  config.num_steps = 3000
  config.batch_size = 8
  config.patch_size = (128, 128)
  config.ema_decay = 0.995
  config.data.source = 'folder'
  config.data.path = '../shared/data/drive'
  config.data.classes = ('background', 'vessel')
  config.data.label_values = (0, 255)
  config.data.roi = 'fov'
  config.data.fold = 'all'
  config.augment.flip_prob = 0.5
  config.augment.rot90_prob = 0.5
  config.augment.warp_prob = 0.5
  config.augment.rotation_degrees = 45.0
  config.augment.gamma_prob = 0.2
  config.augment.brightness_std = 0.1
  config.augment.noise_std = 0.1
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = 1e-4
  config.inference.patch_size = (320, 320)
  config.inference.batch_size = 2
  config.inference.mirror = True
  return config
