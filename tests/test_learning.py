"""The whole thing learns: phantoms never seen, and a few real sections."""

import jax
import pytest
from small import load

from medseg_jax.programs import train


@pytest.fixture(autouse=True)
def in_earnest(monkeypatch):
  """Trains on one device: eight would only share the same few cores.

  And with the optimisations that other tests do without: of hundreds of steps
  they save more time than they take.
  """
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


def tiny(config):
  config.model.depth = 3
  config.model.features = 8
  config.log_every = 50
  config.eval_every = 0
  config.checkpoint_every = 0
  config.inference.mirror = False
  for key in ('warp_prob', 'brightness_prob', 'contrast_prob', 'noise_prob'):
    config.augment[key] = 0.0  # compiling them takes longer than the steps
  return config


def test_a_tiny_unet_learns_phantoms(tmp_path):
  config = tiny(load('unet'))
  config.model.depth = 4
  config.model.features = 16
  config.model.max_features = 32
  config.model.convs_per_stage = 1
  config.overlap.include_background = False
  config.overlap.batch = True
  config.num_steps = 450
  config.batch_size = 4
  config.patch_size = (64, 64)
  config.optimizer.learning_rate = 1e-2
  config.data.phantom.num_val = 0
  config.data.phantom.num_test = 32
  summary = train.run(config, tmp_path)
  assert summary['mean']['dice'] >= 0.9
  assert summary['mean']['pixel_accuracy'] >= 0.98


@pytest.mark.parametrize(
  ('name', 'split', 'cases', 'tile', 'least'),
  [('em', 'val', 6, (256, 256), 0.6), ('drive', 'test', 20, (284, 292), 0.4)],
)
def test_real_images(name, split, cases, tile, least, real_data, tmp_path):
  config = tiny(load(name))
  config.data.path = str(real_data / name)
  config.num_steps = 80
  config.batch_size = 8
  config.patch_size = (64, 64)
  config.ema_decay = 0.0
  config.inference.patch_size = tile  # four, with hardly any overlap
  config.inference.overlap = 0.0
  summary = train.run(config, tmp_path)
  assert summary['split'] == split and summary['num_cases'] == cases
  assert summary['mean']['dice'] > least
