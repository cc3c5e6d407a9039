"""Models of random weights, and images, that tests of prediction share.

What these try does not ask what a mask looks like.
"""

import numpy as np
from PIL import Image
from small import load, shrink, write_untrained

from medseg_jax.experiment import config_files, trained_model
from medseg_jax.programs import predict

_COMPILED = {}


def write_model(folder):
  """Returns the folder of a run on other devices than there are here."""
  config = shrink(load('unet'))
  config.mesh.data, config.mesh.spatial = 4, 2
  write_untrained(config, folder)
  return folder


def compile_once(monkeypatch):
  """Keeps the compiled network of one test for the next."""
  real = trained_model.compile_predict

  def compile_predict(config, model, mesh, variables, *options):
    size = str(config.inference.patch_size)
    key = (repr(model), mesh, size, *options)
    if key not in _COMPILED:
      _COMPILED[key] = real(config, model, mesh, variables, *options)
    return _COMPILED[key]

  monkeypatch.setattr(trained_model, 'compile_predict', compile_predict)


def write_images(folder, names='abc', seed=0):
  """Returns the folder with images of the names, which begin with noise."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(seed)
  for name in names:
    array = rng.integers(0, 255, (20, 30), np.uint8)
    Image.fromarray(array).save(folder / f'{name}.tif')
  return folder


def run(workdir, source, output, *, change=None, **options):
  """Predicts with the config of `workdir` after `change(config)`."""
  config = config_files.read_config(workdir)
  if change:
    change(config)
  predict.run(config, workdir, input_path=source, output_dir=output, **options)


def masks(folder):
  """Returns the masks that are whole: others have a hidden name."""
  return {path.name: path.read_bytes() for path in folder.glob('[!.]*.png')}
