"""From the cache on disk to batches on the devices, with tf.data."""

import collections
import contextlib
import functools
import itertools
import sys
from collections.abc import Iterator
from types import ModuleType

import jax
from jax.sharding import Mesh

from medseg_jax.data import sampling
from medseg_jax.data.cache import Cache
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError


def create_batches(
  cache: Cache,
  *,
  seed: int,
  first_step: int,
  num_steps: int,
  batch_size: int,
  patch_size: tuple[int, ...],
  mesh: Mesh,
  read_size: tuple[int, ...] | None = None,
  foreground_share: float = 0.0,
  on_devices: int = 2,
) -> Iterator[dict[str, jax.Array]]:
  """Yields the batches of the steps `first_step .. num_steps - 1`.

  Args:
    cache: of the training split; with locations for a foreground share.
    seed: of the order and of the patch positions.
    first_step: where a resumed run goes on.
    num_steps: end of the run.
    batch_size: global, over all processes.
    patch_size: spatial; two numbers for slices of volumes.
    mesh: what the batches are spread over.
    read_size: of what is read around each patch; `patch_size` by default.
    foreground_share: of each batch, centred on foreground.
    on_devices: batches that are sent ahead of the step that uses them.

  Yields:
    `{'image': [B, *read, C], 'label': [B, *read] int16}`; the image as in the
    cache.

  Raises:
    InputError: TensorFlow is not installed; a case of the cache is damaged, and
      cannot be made anew.
  """
  tf = _import_tensorflow()
  with contextlib.suppress(RuntimeError):  # too late where it runs already
    tf.config.set_visible_devices([], 'GPU')  # the accelerator belongs to jax
  layout = sharding.patches(mesh)
  read_size = read_size or patch_size
  mine = sharding.own_rows(layout, (batch_size, *read_size))

  refused = []

  def read(step):
    try:
      return read_step(int(step))
    except InputError as error:
      refused.append(error)  # TensorFlow raises one of its own instead
      raise

  def read_step(step):
    chosen = sampling.choose_patches(
      seed=seed,
      step=step,
      batch_size=batch_size,
      shapes=cache.shapes,
      patch_size=patch_size,
      voxels=cache.voxels,
      foreground_share=foreground_share,
    )
    chosen = sampling.Patches(chosen.cases[mine], chosen.starts[mine])
    return sampling.read_batch(
      cache.images,
      cache.labels,
      chosen,
      patch_size,
      read_size,
      cache.image_dtype,
    )

  types = (tf.as_dtype(cache.image_dtype), tf.int16)
  options = tf.data.Options()
  options.deterministic = True
  # Nothing here is left to tune, and ending the data set would wait for the
  # tuner, which sleeps up to a minute at a time.
  options.autotune.enabled = False
  options.threading.private_threadpool_size = 2
  steps = tf.data.Dataset.range(first_step, num_steps)
  batches = (
    steps.map(
      lambda step: tf.numpy_function(read, [step], types, stateful=False),
      num_parallel_calls=2,
    )
    .prefetch(4)
    .with_options(options)
  )
  send = functools.partial(sharding.rows_to_devices, layout, batch_size, mine)
  sent = (
    {'image': send(image), 'label': send(label)}
    for image, label in _raising(
      batches.as_numpy_iterator(), tf.errors.OpError, refused
    )
  )
  return _ahead(sent, on_devices)


def _raising(
  items: Iterator, kind: type[Exception], instead: list[Exception]
) -> Iterator:
  """Yields `items`; for an error of a kind it raises the first of `instead`."""
  try:
    yield from items
  except kind:
    if instead:
      raise instead[0] from None
    raise


def _ahead(items: Iterator, count: int) -> Iterator:
  """Yields `items`, having always asked for `count` more than were taken."""
  queue = collections.deque(itertools.islice(items, count))
  while queue:
    yield queue.popleft()
    queue.extend(itertools.islice(items, 1))


def _import_tensorflow() -> ModuleType:
  """Returns TensorFlow, which takes seconds to import, and only this needs it.

  Keras, which it would import in passing, takes nearly as long again. It is
  still imported when somebody asks for it, be it as `tf.keras`.

  Raises:
    InputError: it is not installed.
  """
  hidden = {'keras': None} if 'keras' not in sys.modules else {}
  sys.modules.update(hidden)  # what is None there cannot be imported
  try:
    import tensorflow as tf
  except ImportError as error:
    raise InputError(
      'TensorFlow is not installed; it reads the batches where the data set '
      'does not lie on the device (config.data.device_cache)'
    ) from error
  finally:
    for name in hidden:
      del sys.modules[name]
  return tf
