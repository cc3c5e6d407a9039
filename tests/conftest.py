"""Eight fake CPU devices for every test, and small data sets to share."""

import atexit
import json
import os
import pathlib
import pwd
import shutil
import sys
import tempfile

import jax
import nibabel
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from medseg_jax import main

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
# Most of the time here goes into compiling. LLVM leaves out its expensive
# passes, which change no program, only how fast it runs, and XLA writes its
# kernels for LLVM itself, not by way of MLIR, which takes half the time.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
jax.config.update('jax_disable_most_optimizations', True)
# Options of the compiler with which a test of equal bits compiles as users do.
AS_USERS: dict[str, bool] = {}
if jax.__version_info__ < (0, 11):  # not tried with later ones
  os.environ['XLA_FLAGS'] = '--xla_cpu_use_fusion_emitters=false'
  AS_USERS['xla_cpu_use_fusion_emitters'] = True
# What many tests have in common is compiled once, for the workers of xdist and
# the processes that some tests start, too, which inherit the place.
COMPILED = os.environ.get('MEDSEG_TEST_COMPILED', '')
if not COMPILED:
  COMPILED = tempfile.mkdtemp(prefix='compiled-')
  atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
os.environ['MEDSEG_TEST_COMPILED'] = COMPILED
os.environ['JAX_COMPILATION_CACHE_DIR'] = COMPILED
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
jax.config.update('jax_compilation_cache_dir', COMPILED)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)

ROOT = pathlib.Path(__file__).parent.parent
# What takes as long hangs. A busy machine needs minutes for what takes seconds.
HANG_S = 1200
# Files that take most of the time, about the longest first, as they are begun.
# `pytest -m 'not long'` leaves them out: what is left takes three minutes and
# has all formulas. `.ci/run` does so but for its first Python.
LONG = (
  *('multihost', 'volumes_loop', 'cascade', 'learning', 'resume'),
  *('early_stop', 'patch_growth', 'choice_of_convolutions', 'resume_loop'),
  *('crossval_volumes', 'crossval_goes_on', 'moved_plans', 'fine_tuning'),
  *('many_ends', 'changed_cases', 'device_cache', 'learning_curve'),
  *('augment', 'augment_intensity', 'benchmark', 'convolution'),
  *('crossval_many', 'disable_jit', 'folding', 'held_out', 'kernel_gradient'),
  *('model_folder', 'mutated_volumes', 'own_parts', 'seen_cases'),
  *('time_budget', 'unread_batch', 'winograd', 'without_tensorflow'),
  *('loop', 'followup_mode', 'followup_registration', 'export', 'exporting'),
  *('pretraining', 'augment_volumes', 'tfds_splits', 'tfds_pets', 'oddities'),
  *('crossval', 'dicom_predict', 'bids', 'run_logs', 'telling'),
  *('residual_unet', 'shared_data', 'accelerator', 'unreadable_cases'),
)
_RANKS = {name: rank for rank, name in enumerate(LONG)}


def pytest_collection_modifyitems(items):
  names = {item: item.path.stem.removeprefix('test_') for item in items}
  for item in items:
    if names[item] in LONG:
      item.add_marker(pytest.mark.long)
  items.sort(key=lambda item: _RANKS.get(names[item], len(LONG)))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  """Keeps the tests' caches out of the user's folder."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'user_cache'))


@pytest.fixture(autouse=True)
def own_flags():
  """Takes back the flags of a command that a test ran in this process."""
  with flagsaver.flagsaver():
    yield


@pytest.fixture
def no_home(own_cache, monkeypatch):
  """Takes away what says where the user's home folder is."""

  def nobody(uid):
    raise KeyError(uid)

  monkeypatch.delenv('HOME', raising=False)
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setattr(pwd, 'getpwuid', nobody)


@pytest.fixture
def refused(monkeypatch, capsys):
  """Returns a function from arguments that are no good to stderr's text."""
  monkeypatch.chdir(ROOT)

  def call(*args):
    monkeypatch.setattr(sys, 'argv', ['main', *map(str, args)])
    capsys.readouterr()
    with flagsaver.flagsaver():
      assert main.main() == 1
    return capsys.readouterr().err

  return call


@pytest.fixture(scope='session')
def real_data():
  """Returns the folder of the real data sets; skips where there is none."""
  path = os.environ.get('MEDSEG_TEST_DATA')
  if not path:
    pytest.skip('MEDSEG_TEST_DATA does not name a folder of real data sets')
  return pathlib.Path(path).resolve()


def disc(size: int, seed: int) -> np.ndarray:
  """Returns a bool image of one disc at a random place."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:size, :size]
  cy, cx = rng.uniform(0.3, 0.7, 2) * size
  return (y - cy) ** 2 + (x - cx) ** 2 < (size / 5) ** 2


def write_pairs(folder: pathlib.Path, count: int, *, size=40, mode='L'):
  """Writes `count` images of a disc with masks of 0 and 255, as PNG."""
  for name in ('images', 'labels'):
    (folder / name).mkdir(parents=True)
  for i in range(count):
    mask = disc(size, seed=i)
    noise = np.random.default_rng(i).integers(0, 80, (size, size))
    image = Image.fromarray((mask * 120 + noise).astype(np.uint8))
    image.convert(mode).save(folder / 'images' / f'case {i:02d}.png')
    label = Image.fromarray((mask * 255).astype(np.uint8))
    label.save(folder / 'labels' / f'case {i:02d}.png')


@pytest.fixture
def disc_folder(tmp_path):
  """Returns a folder of 10 grey training and 4 test images of discs."""
  write_pairs(tmp_path / 'discs' / 'train', 10)
  write_pairs(tmp_path / 'discs' / 'test', 4)
  return tmp_path / 'discs'


def ball(shape: tuple[int, ...], seed: int) -> np.ndarray:
  """Returns uint8 0, 1 and 2: a ball at a random place, cut in two halves."""
  rng = np.random.default_rng(seed)
  grid = np.indices(shape)
  centre = rng.uniform(0.4, 0.6, 3) * shape
  inside = sum((grid[i] - centre[i]) ** 2 for i in range(3)) < 4.0**2
  return inside * np.where(grid[0] < centre[0], 1, 2).astype(np.uint8)


def write_volumes(root: pathlib.Path, count: int) -> pathlib.Path:
  """Writes a data set in the Decathlon's layout, volumes about 14x15x13."""
  for name in ('imagesTr', 'labelsTr'):
    (root / name).mkdir(parents=True)
  affine = np.diag([1.0, 1.0, 1.2, 1.0])
  for i in range(count):
    shape = (14 + i % 3, 15, 13 + i % 2)
    label = ball(shape, seed=i)
    noise = np.random.default_rng(i).normal(100, 10, shape)
    image = (noise + 60 * label).astype(np.float32)
    for folder, array in [('imagesTr', image), ('labelsTr', label)]:
      path = root / folder / f'case_{i:02d}.nii.gz'
      nibabel.Nifti1Image(array, affine).to_filename(path)
  (root / 'dataset.json').write_text(
    json.dumps(
      {
        'name': 'Balls',
        'modality': {'0': 'MRI'},
        'labels': {'0': 'background', '1': 'left', '2': 'right'},
        'training': [
          {
            'image': f'./imagesTr/case_{i:02d}.nii.gz',
            'label': f'./labelsTr/case_{i:02d}.nii.gz',
          }
          for i in range(count)
        ],
      }
    )
  )
  return root
