"""Prediction mirrors along the axes that training mirrored, and no other."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_volumes
from data_cases import assert_one_line
from flax import linen as nn
from small import load, shrink

from medseg_jax.augment import create_augment, read_size
from medseg_jax.experiment import (
  build,
  config_files,
  mirroring,
  model_folder,
  trained_model,
)
from medseg_jax.inference.network import create_predict
from medseg_jax.programs import plan, prepare
from medseg_jax.runtime.errors import InputError

PATCH = (4, 6, 8)


class Corner(nn.Module):
  """Says 1 in the first voxel alone, whatever it sees."""

  def __call__(self, image, train=False):
    return jnp.zeros_like(image).at[:, 0, 0, 0].set(1)


class Corner2d(nn.Module):
  def __call__(self, image, train=False):
    return jnp.zeros_like(image).at[:, 0, 0].set(1)


def config_of(patch=PATCH, *, axes=(0, 1, 2), flip_prob=0.5, flip_axes=()):
  config = load('auto')
  config.patch_size = patch
  config.data.axes = axes
  config.data.classes, config.data.channels = ('background', 'organ'), 1
  config.augment.flip_prob = flip_prob
  config.augment.flip_axes = flip_axes
  config.augment.in_plane, config.augment.rotation_degrees = False, 30.0
  return config


def mirrored_in_prediction(config):
  """Returns the axes that the compiled prediction of a config mirrors."""
  patch = tuple(config.patch_size)
  model = Corner() if len(patch) == 3 else Corner2d()
  predict = trained_model.predict_fn_of(config, model)
  corners = np.asarray(predict({}, np.zeros((1, *patch, 1))))[0, ..., 0]
  axes = tuple(
    axis
    for axis in range(len(patch))
    if corners[(0,) * axis + (-1,) + (0,) * (len(patch) - axis - 1)]
  )
  # All combinations of them, each weighing as much, and nothing else.
  assert np.count_nonzero(corners) == 2 ** len(axes)
  assert set(np.unique(corners)) == {0, np.float32(0.5 ** len(axes))}
  return axes


def mirrored_in_training(config):
  """Returns the axes that the augmentation of a config mirrors."""
  fields = build.augment_fields(config)
  fields |= {k: 0.0 for k in fields if k.endswith('_prob') and k != 'flip_prob'}
  patch = tuple(config.patch_size)
  grid = np.indices(patch).astype(np.int32)
  label = np.ravel_multi_index(grid, patch).astype(np.int32)
  batch = {
    'image': jnp.zeros((64, *patch, 1)),
    'label': jnp.repeat(label[None], 64, 0),
  }
  moved = np.asarray(
    create_augment(**fields)(jax.random.key(0), batch)['label']
  )
  firsts = np.stack(np.unravel_index(moved.reshape(64, -1)[:, 0], patch), -1)
  expected = {
    tuple(f * (n - 1) for f, n in zip(flips, patch, strict=True))
    for flips in itertools.product((0, 1), repeat=len(patch))
  }
  assert set(map(tuple, firsts)) <= expected
  return tuple(np.flatnonzero(firsts.any(0)).tolist())


@pytest.mark.parametrize(
  ('settings', 'axes'),
  [
    ({}, (0, 1, 2)),
    ({'flip_prob': 0.0}, ()),
    ({'flip_prob': 0.0, 'flip_axes': (0, 1)}, ()),
    ({'flip_axes': (0, 1)}, (0, 1)),
    ({'flip_axes': (2,)}, (2,)),
    # The plan puts axis 1 first: z, y and x are axes 1, 0 and 2 of a patch.
    ({'flip_axes': (0, 2), 'axes': (1, 0, 2)}, (1, 2)),
    ({'flip_axes': (1,), 'axes': (1, 0, 2)}, (0,)),
    # Slices have but the last two of the order.
    ({'patch': (6, 8)}, (0, 1)),
    ({'patch': (6, 8), 'flip_axes': (1,)}, (0,)),
    ({'patch': (6, 8), 'flip_axes': (0,)}, ()),
    ({'patch': (6, 8), 'axes': (2, 0, 1), 'flip_axes': (1, 2)}, (1,)),
    # Photographs have no plan.
    ({'patch': (6, 8), 'axes': (), 'flip_axes': (1,)}, (1,)),
  ],
)
def test_prediction_mirrors_what_training_mirrored(settings, axes):
  config = config_of(**settings)
  assert mirrored_in_training(config) == axes
  assert mirrored_in_prediction(config) == axes
  # Only where it is asked for.
  config.inference.mirror = False
  assert mirrored_in_prediction(config) == ()


def _name_classes(config):
  """Sets what every training writes."""
  config.data.classes, config.data.label_values = ('a', 'b'), (0, 1)
  config.data.channels = 1


def test_a_model_folder_knows_what_its_training_mirrored():
  config = config_of(flip_axes=(0, 1))
  _name_classes(config)
  described = model_folder.describe(
    config, channel_names=['MRI'], plan=None, num_cases={}, record={}, step=1,
    checkpoint='latest', scores=None,
  )  # fmt: skip
  again = model_folder.config_of(json.loads(json.dumps(described)))
  assert mirrored_in_prediction(again) == (0, 1)
  # Those of before there were axes mirrored all or none.
  del described['training']['config']['augment']['flip_axes']
  assert mirrored_in_prediction(model_folder.config_of(described)) == (0, 1, 2)


def test_a_workdir_of_before_there_were_axes(tmp_path):
  config = config_of()
  _name_classes(config)
  config = config.to_dict()
  del config['augment']['flip_axes']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  old = config_files.read_config(tmp_path)
  assert mirrored_in_prediction(old) == (0, 1, 2)
  assert build.augment_fields(old)['flip_axes'] == (0, 1, 2)


@pytest.mark.parametrize('flip_axes', [(3,), (-1,), ('x',), (0, 0.5), (0, 0)])
def test_axes_that_images_do_not_have(flip_axes):
  config = config_of()
  config.augment.flip_axes = flip_axes
  for use in (build.augment_fields, build.patch_settings):
    with pytest.raises(InputError) as error:
      use(config)
    assert_one_line(error, 'config.augment.flip_axes', flip_axes, '0, 1, 2')


def test_flips_of_some_axes_are_drawn_as_those_of_all():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 99, (32, 4, 5)).astype(np.int32)
  batch = {'image': label[..., None].astype(np.float32), 'label': label}

  def run(**fields):
    augment_fn = create_augment(flip_prob=0.5, **fields)
    return np.asarray(augment_fn(jax.random.key(3), batch)['label'])

  every, rows = run(), run(flip_axes=(0,))
  np.testing.assert_array_equal(run(flip_axes=(0, 1)), every)
  np.testing.assert_array_equal(run(flip_axes=()), label)
  for old, new, both in zip(label, rows, every, strict=True):
    flipped = np.array_equal(new, old[::-1])
    assert flipped or np.array_equal(new, old)
    assert np.array_equal(both, new) or np.array_equal(both, new[:, ::-1])
  assert (rows != label).any() and (every != rows).any()


@pytest.mark.parametrize(
  'value', [(3,), (-1,), 1, ('x',), 'xy', (0.5,), (1, 1)]
)
def test_flip_axes_of_the_library(value):
  with pytest.raises(ValueError, match='flip_axes is .*allowed'):
    create_augment(flip_axes=value)
  assert read_size((8, 8), flip_axes=(1,)) == (8, 8)


def test_a_third_axis_of_flat_images():
  augment_fn = create_augment(flip_prob=1, flip_axes=(2,))
  batch = {'image': jnp.zeros((1, 4, 4, 1)), 'label': jnp.zeros((1, 4, 4), int)}
  with pytest.raises(ValueError, match=r'flip_axes is \(2,\).*which has 2'):
    augment_fn(jax.random.key(0), batch)


def test_the_case_that_was_silently_wrong():
  # Two structures that only their place tells apart, learnt without mirroring:
  # averaged with what the network says of mirrored images, they are gone.
  class Place(nn.Module):
    def __call__(self, image, train=False):
      x = jnp.arange(32) < 16
      sides = jnp.stack([x * 0.0, ~x * 4.0, x * 4.0], -1)
      return image * sides

  image = np.zeros((1, 8, 8, 32, 1), np.float32)
  image[:, 2:5, 2:5, [8, 24]] = 1
  truth = np.zeros((8, 8, 32), int)
  truth[2:5, 2:5, 8], truth[2:5, 2:5, 24] = 2, 1
  config = config_of((8, 8, 32), flip_prob=0.0)
  assert config.inference.mirror
  predict = trained_model.predict_fn_of(config, Place())
  found = np.asarray(predict({}, image))[0].argmax(-1)
  np.testing.assert_array_equal(found, truth)
  config.augment.flip_prob, config.augment.flip_axes = 0.5, (0, 1)
  predict = trained_model.predict_fn_of(config, Place())
  found = np.asarray(predict({}, image))[0].argmax(-1)
  np.testing.assert_array_equal(found, truth)
  everything = create_predict(model=Place(), mirror_axes=(0, 1, 2))
  assert (np.asarray(everything({}, image))[0].argmax(-1) != truth).any()


def test_what_is_not_mirrored_is_said():
  for settings, words in [
    ({}, ''),
    ({'flip_prob': 0.0}, 'not mirrored, as training mirrors no axis'),
    ({'flip_axes': (0, 1)}, 'mirrored along 0, 1 alone, as in training'),
    ({'flip_axes': (0, 2), 'axes': (1, 0, 2)}, 'along 0, 2 alone'),
  ]:
    line = mirroring.describe(config_of(**settings))
    assert words in line and (line == '') == (words == '')
  config = config_of(flip_prob=0.0)
  config.inference.mirror = False
  assert mirroring.describe(config) == ''


@pytest.mark.parametrize(
  ('names', 'sided'),
  [
    (['left', 'right'], 2),
    (['left atrium'], 1),
    (['kidney_right', 'Left-Kidney', 'LeftLung', 'liver'], 3),
    (['kidney_L', 'kidney_R', 'spleen'], 2),
    (['lh cortex', 'rh cortex'], 2),
    (['vertebra_L1', 'vertebra_L2'], 0),
    (['synaptic cleft', 'bright', 'upright', 'L', 'background'], 0),
    (['r', 'g', 'b'], 0),
  ],
)
def test_names_of_a_side(names, sided):
  assert len(mirroring.sided_names(['background', *names])) == sided


def test_sides_that_training_mirrors_are_warned_of():
  def warning(*names, **settings):
    config = config_of(**settings)
    config.data.classes = ('background', *names)
    return mirroring.side_warning(config)

  sides = ('left lung', 'right lung')
  line = warning(*sides)
  assert '\n' not in line and line.startswith('warning   left lung, right lung')
  assert 'axis 2' in line and '--config.augment.flip_axes=0,1 ' in line
  assert 'and 1 more' in warning(*sides, 'left kidney')
  assert 'flip_prob=0 ' in warning(*sides, flip_axes=(2,))
  assert 'flip_axes=1 ' in warning(*sides, patch=(6, 8))
  assert 'axis 1' in warning(*sides, patch=(6, 8), axes=())
  for settings in [
    {'flip_axes': (0, 1)},
    {'flip_prob': 0.0},
    {'patch': (6, 8), 'axes': (2, 0, 1)},  # sagittal slices
  ]:
    assert warning(*sides, **settings) == ''
  assert warning('liver', 'spleen') == ''
  config = config_of()
  config.data.regions = (('right half', (1,)),)
  assert 'right half' in mirroring.side_warning(config)


def test_the_warning_comes_once_before_the_work(tmp_path, capsys):
  data = write_volumes(tmp_path / 'data', 5)  # of 'left' and 'right'
  config = shrink(load('auto_cpu'), path=data)
  for flip_axes, count in [((), 1), ((0, 1), 0)]:
    config.augment.flip_axes = flip_axes
    prepare.run(config, tmp_path / 'run')
    words = capsys.readouterr().out
    assert words.count('warning   left, right') == count
    assert words.count('mirrored along 0, 1 alone') == 1 - count
    plan.run(config, tmp_path / 'run')
    words = capsys.readouterr().out
    assert words.count('warning   left, right') == count
  config.augment.flip_axes = (3,)
  with pytest.raises(InputError, match='flip_axes'):
    prepare.run(config, tmp_path / 'run')
