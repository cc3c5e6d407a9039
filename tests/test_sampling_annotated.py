"""Patches forced onto regions, and patches of sparsely annotated volumes."""

import dataclasses
import json

import jax
import nibabel
import numpy as np
import pytest
from conftest import write_volumes
from small import load, shrink
from test_device_cache import (
  SHAPES_3D,
  assert_same,
  cache_of,
  compile_read,
  host_batch,
  one_device,
)

from medseg_jax.data import cache as caches
from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import Preprocessing
from medseg_jax.data.sampling import ANNOTATED, choose_patches, sample_voxels
from medseg_jax.experiment import opening
from medseg_jax.programs import prepare
from medseg_jax.training import device_cache


def starts(voxels, *, share, steps=50, shape=(64,) * 3, size=2):
  """Returns the first voxels of 40 patches a step, and which are forced."""
  found = [
    choose_patches(
      seed=3,
      step=step,
      batch_size=40,
      shapes=[shape],
      patch_size=(size,) * len(shape),
      voxels=[voxels],
      foreground_share=share,
    ).starts
    for step in range(steps)
  ]
  forced = np.tile(np.arange(40) >= round(40 * (1 - share)), steps)
  return np.concatenate(found), forced


def test_regions_are_drawn_first_and_then_their_voxels():
  # The core (2 and 3) lies in the whole (1, 2 and 3); class 3 is but a voxel.
  label = np.zeros((64, 64, 64), np.int16)
  label[10:30] = 1
  label[20:22, 20:25, 20:25] = 2
  label[40, 40, 40] = 3
  voxels = sample_voxels(label, name='a', regions=((1, 2, 3), (2, 3), (4,)))
  assert sorted(voxels) == [1, 2]  # nothing is of the third region
  assert len(voxels[1]) == 10_000 and len(voxels[2]) == 51
  found, _ = starts(voxels, share=1.0)
  centres = found + 1
  in_core = label[tuple(centres.T)] >= 2
  # 2000 draws, half of them of the core, which is hardly met by chance; the
  # single voxel is one of its 51, and not a class of its own.
  assert abs(in_core.sum() - 1000) < 90
  assert 3 < (centres == 40).all(1).sum() < 45
  # Sampled by class, it would be a third of all.
  by_class, _ = starts(sample_voxels(label, name='a'), share=1.0)
  assert abs((by_class == 39).all(1).sum() - 667) < 90


def test_a_sample_of_a_region_is_not_one_of_its_classes():
  label = np.ones((40, 40, 1000), np.uint8)
  label[:2, :10] = 2  # 20,000 of 1.6 million voxels
  [points] = sample_voxels(label, name='a', regions=((1, 2),)).values()
  assert len(points) == 16_000
  share = (label[tuple(points.T)] == 2).mean()
  assert share == pytest.approx(0.0125, abs=0.004)


def test_other_patches_are_centred_on_what_is_annotated():
  label = np.full((64, 64, 64), -1, np.int16)
  label[30, 10:50, 20:40] = 0  # a scribble of background, and one of class 1
  label[12, 12, 5:15] = 1
  voxels = sample_voxels(label, name='a', annotated=True)
  assert sorted(voxels) == [ANNOTATED, 1]
  np.testing.assert_array_equal(
    np.sort(voxels[ANNOTATED], 0), np.sort(np.argwhere(label >= 0), 0)
  )
  found, forced = starts(voxels, share=0.25)
  centres = label[tuple((found + 1).T)]
  assert (centres[forced] == 1).all()
  assert set(np.unique(centres[~forced])) == {0, 1}
  # Each annotated voxel is as likely: 800 of background, 10 of the class.
  assert 5 < (centres[~forced] == 1).sum() < 40
  # Where no foreground is annotated, forced patches take what is.
  found, _ = starts({ANNOTATED: voxels[ANNOTATED]}, share=1.0)
  assert (label[tuple((found + 1).T)] >= 0).all()
  # Without a share, too.
  found, _ = starts(voxels, share=0.0)
  assert (label[tuple((found + 1).T)] >= 0).all()


def test_a_case_without_any_annotation_is_read_anywhere():
  label = np.full((9, 9, 9), -1, np.int16)
  voxels = sample_voxels(label, name='a', annotated=True)
  assert voxels == {}
  found, _ = starts(voxels, share=0.5, shape=label.shape)
  plain, _ = starts({}, share=0.0, shape=label.shape)
  np.testing.assert_array_equal(found, plain)


def test_annotation_does_not_change_the_samples_of_the_classes():
  label = np.random.default_rng(0).integers(-1, 3, (40, 40, 40))
  plain = sample_voxels(label, name='a')
  more = sample_voxels(label, name='a', annotated=True)
  for key, points in plain.items():
    np.testing.assert_array_equal(more[key], points)
  assert len(more[ANNOTATED]) == 10_000
  assert (label[tuple(more[ANNOTATED].T)] >= 0).all()


@pytest.mark.parametrize('share', [0.0, 1 / 3])
@pytest.mark.parametrize('patch_size', [(8, 16, 12), (16, 16)])
def test_the_device_chooses_as_the_host(share, patch_size):
  cache, mesh = cache_of(SHAPES_3D, lowest=-1), one_device()
  regions = ((2, 300), (300,))
  voxels = [
    sample_voxels(label, name='x', regions=regions, annotated=True)
    for label in cache.labels
  ]
  voxels[3] = {}  # nobody has looked at this one
  voxels[4].pop(ANNOTATED)
  cache = cache._replace(voxels=voxels)
  data = device_cache.place(cache, mode='on', mesh=mesh)
  settings = dict(
    seed=5,
    batch_size=6,
    patch_size=patch_size,
    read_size=patch_size,
    foreground_share=share,
  )
  with jax.set_mesh(mesh):
    read = compile_read(mesh, **settings)
    for step in [*range(25), 2**31 - 2]:
      assert_same(
        read(data, np.int32(step)), host_batch(cache, step, **settings)
      )


@dataclasses.dataclass
class Scribbles:
  """Three cases, of which the last was never looked at."""

  regions: tuple = (('whole', (1, 2)), ('core', (2,)))
  ignore_value: int | None = 9
  names = ('a', 'b', 'c')

  def __len__(self):
    return 3

  def __getitem__(self, index):
    label = np.full((6, 6, 6), -1, np.int16)
    if index < 2:
      label[1 + index] = np.arange(6) % 2
    image = np.arange(216, dtype=np.float32).reshape(6, 6, 6, 1)
    return Case(self.names[index], image, label, (1.0,) * 3)

  def case_key(self, index):
    return f'{index} {self.regions} {self.ignore_value}'


def test_the_cache_holds_what_the_source_asks_for(tmp_path):
  def voxels(**fields):
    cache = caches.prepare(
      Scribbles(**fields), Preprocessing(), root=tmp_path, with_locations=True
    )
    return [{k: len(v) for k, v in cache.voxels[i].items()} for i in range(3)]

  assert voxels() == [{1: 18, 0: 36}, {1: 18, 0: 36}, {}]
  assert voxels(ignore_value=None)[0] == {1: 18}
  assert voxels(regions=(('core', (2,)), ('whole', (1, 2))))[0] == {
    2: 18,
    0: 36,
  }
  assert voxels(regions=())[0] == {1: 18, 0: 36}


def test_scribbles_are_met_by_every_patch_of_a_run(tmp_path):
  data = write_volumes(tmp_path / 'data', 5)
  for path in (data / 'labelsTr').iterdir():
    label = nibabel.load(path)
    array = np.full(label.shape, 3, np.uint8)
    array[7] = np.asarray(label.dataobj)[7]  # one slice is annotated
    nibabel.Nifti1Image(array, label.affine).to_filename(path)
  (data / 'dataset.json').write_text(
    json.dumps(
      {
        'channel_names': {'0': 'MRI'},
        'labels': {'background': 0, 'a': 1, 'b': 2, 'ignore': 3},
        'file_ending': '.nii.gz',
      }
    )
  )
  config = shrink(load('auto_cpu'), path=data)
  config.patch_size = (6, 6, 6)
  config.data.fold = 'all'
  config.data.foreground_share = 0.0
  config, sources, _ = opening.open_run(config, tmp_path / 'run')
  cache = prepare.prepare(config, sources)
  with_labels = 0
  for step in range(20):
    _, label = host_batch(
      cache, step, seed=0, batch_size=5, patch_size=(6,) * 3,
      read_size=(6,) * 3, foreground_share=0.0,
    )  # fmt: skip
    with_labels += (label.reshape(5, -1).max(1) >= 0).sum()
  assert with_labels == 100
