"""Configs made small enough for a test."""

import dataclasses
import importlib
import sys

import jax.numpy as jnp
from conftest import ROOT, write_volumes
from model_cases import random_variables

from medseg_jax.experiment import (
  build,
  config_files,
  held_out,
  model_of_training,
  opening,
)
from medseg_jax.programs import train
from medseg_jax.step import TrainStep

# What is promised of benchmark.json.
BENCHMARK_KEYS = {
  'device',
  'num_devices',
  'dtype',
  'batch_size',
  'patch_size',
  'compile_s',
  'step_ms',
  'images_per_s',
  'end_to_end_images_per_s',
  'data_wait_frac',
  'flops_per_step',
  'tflops_per_s',
  'peak_tflops_per_s',
  'mfu',
  'peak_memory_bytes',
  'inference_images_per_s',
}

if str(ROOT) not in sys.path:
  sys.path.append(str(ROOT))


def load(name: str):
  """Returns the config of `configs/NAME.py` as it is."""
  return importlib.import_module(f'configs.{name}').get_config()


def shrink(config, *, size=16, num_steps=4, path=None, augmented=False):
  """Returns the config with a tiny network, patch, data set and run.

  Without `augmented` the augmentation mirrors at most, which compiles sooner.
  """
  config.num_steps = num_steps
  config.num_epochs = 0
  config.batch_size = 8
  config.patch_size = (size,) * len(config.patch_size)
  config.patch_growth = ()
  if config.model.name == 'unet':
    config.model.depth = config.model.depth and 2  # 0: planned
    config.model.features = 4
  if config.data.resize:
    config.data.resize = config.patch_size
  if config.inference.patch_size:
    config.inference.patch_size = (2 * size,) * len(config.patch_size)
  for key in config.augment:
    if key.endswith('_prob') and key != 'flip_prob' and not augmented:
      config.augment[key] = 0.0
  if path is not None:
    config.data.path = str(path)
  config.data.phantom.num_train = 12
  config.data.phantom.num_val = 3
  config.data.phantom.num_test = 5
  config.log_every = 2
  config.eval_every = 2
  config.checkpoint_every = 2
  return config


def write_untrained(config, workdir):
  """Writes `workdir` with a model of random weights, as if it had trained."""
  config, sources, digests = opening.open_run(config, workdir)
  mesh = build.mesh_of(config)
  model = build.model_of(config, mesh)
  image = jnp.zeros(build.image_shape(config))
  config_files.write_config(config, workdir)
  model_of_training.write(
    workdir,
    random_variables(model, image),
    config=config,
    sources=sources,
    record=held_out.record_of(config, digests, {}),
    step=0,
    checkpoint='latest',
    scores=None,
  )
  return config


def train_on_balls(folder):
  """Returns the workdir of a run on ten volumes, `folder/Balls`."""
  root = write_volumes(folder / 'Balls', 10)
  train.run(shrink(load('auto_cpu'), path=root), folder / 'run')
  return folder / 'run'


@dataclasses.dataclass(frozen=True)
class _MeetsNan(TrainStep):
  """A step whose images are NaN at step `bad`."""

  bad: int = 0

  def augment(self, step, batch):
    batch = super().augment(step, batch)
    factor = jnp.where(step == self.bad, jnp.nan, 1.0)
    return batch | {'image': batch['image'] * factor}


def step_that_meets_nan(monkeypatch, bad: int) -> None:
  """Makes training meet NaN at step `bad`."""
  real = build.train_step_of
  monkeypatch.setattr(
    build,
    'train_step_of',
    lambda *args: _MeetsNan(**vars(real(*args)), bad=bad),
  )
