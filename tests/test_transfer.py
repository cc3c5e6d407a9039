"""Trained weights in a network of other classes and channels, by hand."""

import numpy as np
import pytest
from data_cases import assert_one_line
from flax import traverse_util
from model_cases import param_shapes

from medseg_jax.experiment.transfer import Meaning, match, transfer
from medseg_jax.models import create_model
from medseg_jax.models.parameters import input_kernels, is_head
from medseg_jax.runtime.errors import InputError

STEM, HEAD = 'params/encoder_0/conv_0/kernel', 'params/head_0/kernel'
BIAS, DEEP = 'params/head_0/bias', 'params/head_1/kernel'
INSIDE, MEAN = 'params/up_0/kernel', 'batch_stats/encoder_0/norm_0/mean'
TISSUES = Meaning(('liver', 'tumour'), True, ('T1', 'T2'))


def arrays_of(seed, *, channels=2, outputs=3, inside=5):
  rng = np.random.default_rng(seed)
  shapes = {
    STEM: (3, 3, channels, 4),
    INSIDE: (2, 2, inside, 4),
    HEAD: (4, outputs),
    BIAS: (outputs,),
    DEEP: (8, outputs),
    MEAN: (4,),
  }
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def moved(after, *, before=TISSUES, **shapes):
  """Returns (old, fresh, what came of them)."""
  outputs = len(before.classes) + before.background
  old = arrays_of(0, channels=len(before.channels), outputs=outputs)
  fresh = arrays_of(
    1,
    channels=len(after.channels),
    outputs=len(after.classes) + after.background,
    **shapes,
  )
  found = transfer(old, fresh, before=before, after=after, where='runs/a')
  assert {k: v.shape for k, v in found.arrays.items()} == {
    k: v.shape for k, v in fresh.items()
  }
  for name in (INSIDE, MEAN):
    np.testing.assert_array_equal(found.arrays[name], old[name])
  return old, fresh, found


COMMON = {'features': 4, 'depth': 3}
NETWORKS = [
  ('unet', {**COMMON, 'deep_supervision': True, 'attention': True}),
  ('unet', {**COMMON, 'residual': True}),
  ('unet', {**COMMON, 'residual_blocks': 1, 'norm': 'instance'}),
  ('encoder_decoder', {}),
]


@pytest.mark.parametrize(('name', 'fields'), NETWORKS)
def test_what_depends_on_the_data_is_what_changes_with_it(name, fields):
  def shapes(classes, channels):
    model = create_model(name, classes, **fields)
    found = param_shapes(model, (1, 16, 16, channels))
    flat = traverse_util.flatten_dict(found, sep='/')
    return {key: value.shape for key, value in flat.items()}

  some = shapes(3, 2)
  others = shapes(5, 2)
  assert {k for k in some if some[k] != others[k]} == set(filter(is_head, some))
  others = shapes(3, 3)
  changed = {k for k in some if some[k] != others[k]}
  assert changed == set(input_kernels(some)) and changed


def test_the_same_meaning_is_the_same_weights():
  old, _, found = moved(TISSUES)
  assert found.arrays.keys() == old.keys()
  for name, array in found.arrays.items():
    np.testing.assert_array_equal(array, old[name])
  assert sorted(found.report['loaded']) == sorted(old)
  assert not found.report['adapted'] + found.report['new']
  assert found.report['classes'] == {
    'kept': ['liver', 'tumour'],
    'new': [],
    'left_behind': [],
  }


def test_rows_of_classes_of_one_name_are_kept():
  after = TISSUES._replace(classes=('spleen', 'tumour', 'cyst'))
  old, fresh, found = moved(after)
  for name in (HEAD, BIAS, DEEP):
    array = found.arrays[name]
    np.testing.assert_array_equal(array[..., 0], old[name][..., 0])
    np.testing.assert_array_equal(array[..., 1], fresh[name][..., 1])
    np.testing.assert_array_equal(array[..., 2], old[name][..., 2])
    np.testing.assert_array_equal(array[..., 3], fresh[name][..., 3])
  assert found.report['adapted'] == [HEAD, BIAS, DEEP]
  assert found.report['classes'] == {
    'kept': ['tumour'],
    'new': ['spleen', 'cyst'],
    'left_behind': ['liver'],
  }


def softmax(logits):
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def test_two_classes_keep_their_probabilities_as_a_sigmoid_and_back():
  both = Meaning(('liver',), True, ('T1',))
  alone = both._replace(background=False)
  x = np.random.default_rng(2).normal(size=(50, 4))
  for before, after in ((both, alone), (alone, both)):
    old, _, found = moved(after, before=before)
    logits = {
      how: x @ arrays[HEAD] + arrays[BIAS]
      for how, arrays in (('old', old), ('new', found.arrays))
    }
    one, two = ('new', 'old') if before is both else ('old', 'new')
    np.testing.assert_allclose(
      1 / (1 + np.exp(-logits[one][..., 0])),
      softmax(logits[two])[..., 1],
      rtol=1e-5,
    )


def test_a_head_without_anything_to_keep_is_new():
  before = TISSUES._replace(background=False)
  after = Meaning(('spleen',), False, before.channels)
  _, fresh, found = moved(after, before=before)
  np.testing.assert_array_equal(found.arrays[HEAD], fresh[HEAD])
  assert found.report['new'] == [HEAD, BIAS, DEEP]


def test_heads_may_come_and_go():
  old, fresh = arrays_of(0), arrays_of(1)
  fresh['params/head_2/kernel'] = np.ones((9, 3), np.float32)
  gone = old.pop(BIAS), fresh.pop(DEEP)
  found = transfer(old, fresh, before=TISSUES, after=TISSUES, where='')
  assert found.report['left_behind'] == [DEEP] and len(gone) == 2
  assert found.report['new'] == [BIAS, 'params/head_2/kernel']


def test_channels_of_one_name_are_kept_and_new_ones_take_the_mean():
  after = TISSUES._replace(channels=('T2', 'FLAIR', 'T1'))
  old, _, found = moved(after)
  kernel, mean = found.arrays[STEM], old[STEM].mean(2)
  np.testing.assert_array_equal(kernel[:, :, 0], old[STEM][:, :, 1])
  np.testing.assert_allclose(kernel[:, :, 1], mean, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(kernel[:, :, 2], old[STEM][:, :, 0])
  assert found.report['adapted'] == [STEM]
  assert found.report['channels'] == {
    'kept': ['T2', 'T1'],
    'new': ['FLAIR'],
    'left_behind': [],
  }


@pytest.mark.parametrize('count', [1, 2, 5])
def test_new_channels_that_are_alike_give_what_old_ones_gave(count):
  names = tuple(f'new {i}' for i in range(count))
  old, _, found = moved(TISSUES._replace(channels=names))
  image = np.random.default_rng(3).normal(size=(3, 3, 1))
  outputs = [
    np.einsum('xyc,xycf->f', np.repeat(image, kernel.shape[2], 2), kernel)
    for kernel in (old[STEM], found.arrays[STEM])
  ]
  np.testing.assert_allclose(*outputs, rtol=1e-5)


def test_what_else_differs_is_one_line():
  with pytest.raises(InputError) as error:
    moved(TISSUES, inside=6)
  assert_one_line(
    error, 'runs/a', INSIDE, '(2, 2, 5, 4)', '(2, 2, 6, 4)', 'plan', 'patch'
  )
  old, fresh = arrays_of(0), arrays_of(1)
  for i in range(5):
    fresh[f'params/more_{i}/kernel'] = np.zeros((1, 2))
  with pytest.raises(InputError) as error:
    transfer(old, fresh, before=TISSUES, after=TISSUES, where='b')
  assert_one_line(error, 'none there and (1, 2) here', 'and 2 more')


def test_a_model_that_contradicts_itself_is_refused():
  old, fresh = arrays_of(0), arrays_of(1)
  for before in (
    TISSUES._replace(channels=('T1',)),
    TISSUES._replace(classes=('liver',)),
  ):
    with pytest.raises(InputError, match='do not fit'):
      transfer(old, fresh, before=before, after=TISSUES, where='c')


def test_names_that_are_there_twice_are_met_in_turn():
  assert match(['MRI', 'CT', 'MRI'], ['MRI', 'MRI', 'MRI', 'CT']) == [
    0,
    2,
    None,
    1,
  ]
