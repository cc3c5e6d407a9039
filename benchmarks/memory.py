"""Measures the host memory that predicting a large CT takes.

  python benchmarks/memory.py [--spacing=1.5] [--shape=1000,512,512] [--folds=1]

Predicts one synthetic CT (int16, 0.8 mm, 20 classes) at `--spacing`, at its
native one, and by both as an ensemble of two configurations, each in a process
of its own, and prints what that took. Of `--folds` the logits are averaged, as
those of an ensemble are. The network is a 1x1 linear map, so that the memory is
that of preprocessing, tiles, sums, resampling and masks, and the time is not a
network's.
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import Channel, Preprocessing
from medseg_jax.inference.cases import Network, predict_cases
from medseg_jax.inference.network import create_predict

NATIVE = 0.8  # mm
PATCH = (64, 192, 160)
CT = Channel('ct', low=-1000.0, high=1000.0, mean=0.0, std=400.0)
LIMIT_GB = 4.0


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--spacing', type=float, default=1.5, help='mm')
  parser.add_argument('--shape', default='1000,512,512', help='z,y,x')
  parser.add_argument('--classes', type=int, default=20)
  parser.add_argument('--folds', type=int, default=1, help='of the network')
  parser.add_argument('--one', action='store_true', help='only --spacing, here')
  parser.add_argument('--both', action='store_true', help='and 0.8 mm')
  args = parser.parse_args()
  if args.one:
    predict(args)
    return 0
  failed = 0
  for spacing, more in (
    (args.spacing, []),
    (NATIVE, []),
    (args.spacing, ['--both']),
  ):
    command = [
      sys.executable,
      __file__,
      '--one',
      f'--spacing={spacing}',
      f'--shape={args.shape}',
      f'--classes={args.classes}',
      f'--folds={args.folds}',
      *more,
    ]
    failed |= subprocess.run(command, check=False).returncode
  return failed


class Linear:
  """A network of one layer, `[1, K]` its weights."""

  def apply(self, variables, image, train):
    return image @ variables - variables[0] ** 2 / 2


def predict(args):
  shape = tuple(map(int, args.shape.split(',')))
  weights = jnp.linspace(-1, 1, args.classes)[None]
  if args.folds > 1:
    weights = jnp.stack([weights * (1 + 0.01 * i) for i in range(args.folds)])
  network = create_predict(model=Linear(), num_members=args.folds)
  predict_fn = jax.jit(lambda tiles: network(weights, tiles))
  at_import = peak_gb()
  begin = time.perf_counter()
  native = Preprocessing(channels=(CT,), crop=True)
  preprocessing = native
  if args.spacing != NATIVE:
    preprocessing = native._replace(spacing=(args.spacing,) * 3)
  other = Network(predict_fn, native, PATCH, 0.5, 1)
  predicted = predict_cases(
    predict_fn,
    cases(shape),
    preprocessing=preprocessing,
    channels=1,
    patch_size=PATCH,
    overlap=0.5,
    batch_size=1,
    also=[other] * args.both,
  )
  for _, label, *_ in predicted:
    assert label.shape == shape
    found = len(np.unique(label[:: shape[0] // 4]))
  print(
    f'{args.shape} int16 at {NATIVE} mm, {args.classes} classes, predicted at '
    f'{args.spacing} mm{" and at its own" * args.both} by {args.folds} '
    f'fold(s): peak {peak_gb():.2f} GB resident ({at_import:.2f} of it JAX '
    f'itself), {time.perf_counter() - begin:.0f} s, {found} classes '
    'found',
    flush=True,
  )
  if peak_gb() > LIMIT_GB:
    sys.exit(f'more than {LIMIT_GB:g} GB')


def cases(shape):
  """Yields one case: a body of tissue with some noise in air."""
  rng = np.random.default_rng(0)
  y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape[1:])
  body = (y[:, None] ** 2 + x**2 < 0.8) * 1000 - 1000
  image = np.empty((*shape, 1), np.int16)
  for i, plane in enumerate(image):
    wave = 300 * np.sin(0.02 * i + 6 * y[:, None]) * np.cos(5 * x)
    plane[..., 0] = body + wave + rng.normal(0, 20, shape[1:])
  yield Case('synthetic', image, None, (NATIVE,) * 3)


def peak_gb() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == '__main__':
  sys.exit(main())
