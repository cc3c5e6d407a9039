"""Ensembles of models that have not trained, for the tests of them."""

import json

import numpy as np
from flax import traverse_util
from small import load, shrink, write_untrained

from medseg_jax.experiment import ensemble, model_folder

SCORES = {
  'split': 'crossval',
  'num_cases': 4,
  'classes': {},
  'mean': {'dice': 1.0},
}


def write_untrained_models(root):
  """Returns the models of two configurations, which see other tiles."""
  found = {}
  for name, size in ('small', 16), ('large', 32):
    config = shrink(load('unet'))
    config.inference.patch_size = (size, size)
    write_untrained(config, root / name)
    found[name] = root / name / 'model'
  return found


def member(source, folder, *, fold=0, bias=None, seed=None, change=None):
  """Returns a model folder like `source`, with other weights.

  Args:
    source: a model folder.
    folder: to write.
    fold: of its training.
    bias: of the head, whose other weights are then 0.
    seed: of noise that is added to the weights.
    change: takes the description.
  """
  stored = model_folder.read(source)
  flat = traverse_util.flatten_dict(stored.variables, sep='.')
  [head] = [n for n in flat if 'head' in n and n.endswith('bias')]
  if bias is not None:
    kernel = head.replace('bias', 'kernel')
    flat[kernel] = np.zeros_like(flat[kernel])
    flat[head] = np.asarray(bias, np.float32)
  if seed is not None:
    rng = np.random.default_rng(seed)
    for name, array in sorted(flat.items()):  # files have any order
      if 'params' in name:
        flat[name] = array + rng.normal(0, 0.3, array.shape).astype(np.float32)
  description = json.loads(json.dumps(stored.description))
  data = description['training']['config']['data']
  data['fold'] = description['training']['cases']['fold'] = str(fold)
  if change:
    change(description)
  variables = traverse_util.unflatten_dict(flat, sep='.')
  model_folder.write(folder, description, variables)
  return folder


def write(folder, models):
  ensemble.write(folder, models, scores=SCORES, postprocessing=[])
  return folder
