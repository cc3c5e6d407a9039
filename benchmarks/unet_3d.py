"""nnU-Net's plain network for patches of 128^3, trained on phantoms.

  python -m medseg_jax.main --config=benchmarks/unet_3d.py --mode=compile \
    --topology=h100:8 --config.batch_size=8

What `configs/auto.py` plans for large volumes, with all of its augmentation,
and no data to fetch: 32 to 320 channels, six resolutions, bfloat16.
"""

from configs import auto


def get_config():
  config = auto.get_config()
  config.num_steps = 1000
  config.batch_size = 2
  config.patch_size = (128, 128, 128)
  config.model.depth = 6
  config.model.features = 32
  config.model.max_features = 320
  config.overlap.batch = False
  config.augment.rotation_degrees = 30.0
  config.augment.in_plane = False
  config.data.source = 'phantom'
  config.data.phantom.num_train = 8
  config.data.phantom.num_val = 1
  config.data.phantom.num_test = 1
  return config
