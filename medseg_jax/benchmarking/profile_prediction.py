"""Where the time of predicting a case goes, part by part."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax import inference
from medseg_jax.benchmarking.machine import median_seconds
from medseg_jax.data.case import Case
from medseg_jax.data.precision import compact
from medseg_jax.data.preprocess import Prepared, preprocess
from medseg_jax.data.resample import resample_linear_slabs
from medseg_jax.experiment import trained_model
from medseg_jax.inference import tiles
from medseg_jax.inference.cases import match_channels
from medseg_jax.inference.decoding import argmax


def prediction_parts(
  predict_fn: Callable[[np.ndarray], jax.Array],
  case: Case,
  count: int,
  config: ConfigDict,
  mesh: Mesh,
  min_seconds: float,
) -> dict[str, float]:
  """Returns the seconds of the parts of predicting a case.

  'preprocessing', 'network' (with the tiles' way to the devices), 'stitching'
  (cutting tiles, adding up their logits and reading the sums back) and
  'decoding' (resampling to the case's own grid, and the largest logit). One
  after the other; prediction does some of it at the same time. The case is
  predicted `count` times at once, so that batches of tiles are full; the time
  is that of one.
  """
  settings = trained_model.prediction_settings(config, mesh)
  decode = settings.get('decode', argmax)
  axes = settings['preprocessing'].axes or range(case.image.ndim - 1)
  prepared = None

  def prepare():
    nonlocal prepared
    prepared = _prepared(case, settings)

  preprocessing = median_seconds(prepare, min_seconds)
  image, size = prepared.image, prepared.image.shape[:-1]
  own_size = case.image[prepared.box].shape[:-1]
  own_size = tuple(own_size[axis] for axis in axes)
  rounds = []

  def once():
    network, slabbing, all_of_it = _Clock(), _Clock(), _Clock()

    def predict_and_wait(batch):
      with network:
        return jax.block_until_ready(predict_fn(batch))

    stream = inference.stream_slabs(
      predict_and_wait,
      [(None, image)] * count,
      settings['patch_size'],
      overlap=settings['overlap'],
      batch_size=settings['batch_size'],
    )
    stream = _timed_items(stream, slabbing)
    with all_of_it:
      for _, slabs in inference.by_case(stream):
        if own_size != size:
          slabs = resample_linear_slabs(slabs, size, own_size)
        for slab in slabs:
          decode(slab)
    rounds.append([network.seconds, slabbing.seconds, all_of_it.seconds])

  once()  # compiles
  rounds.clear()
  median_seconds(once, min_seconds)
  network, slabbing, all_of_it = np.median(rounds, axis=0) / count
  return {
    'preprocessing': preprocessing,
    'network': float(network),
    'stitching': float(slabbing - network),
    'decoding': float(all_of_it - slabbing),
  }


def cases_at_once(case: Case, config: ConfigDict, mesh: Mesh) -> int:
  """Returns how many such cases fill their batches of tiles evenly.

  One where a case has many tiles, so that a last batch counts for little.
  """
  settings = trained_model.prediction_settings(config, mesh)
  batch_size = settings['batch_size']
  num_tiles = tiles.lay_out(
    _prepared(case, settings).image.shape[:-1],
    settings['patch_size'],
    overlap=settings['overlap'],
  ).num_tiles
  if num_tiles >= 4 * batch_size:
    return 1
  return batch_size // math.gcd(batch_size, num_tiles)


def _prepared(case: Case, settings: dict[str, Any]) -> Prepared:
  """Returns the case as the network sees it."""
  bare = match_channels(case, settings['channels'])
  prepared = preprocess(bare._replace(label=None), settings['preprocessing'])
  return prepared._replace(image=compact(prepared.image, prepared.slack))


class _Clock:
  """Adds up the time spent in its `with` blocks."""

  def __init__(self):
    self.seconds = 0.0

  def __enter__(self):
    self._begin = time.perf_counter()

  def __exit__(self, *exc_info):
    self.seconds += time.perf_counter() - self._begin


def _timed_items(items: Iterator, clock: _Clock) -> Iterator:
  """Yields `items`; the clock counts how long they are waited for."""
  while True:
    with clock:
      item = next(items, None)
    if item is None:
      return
    yield item
