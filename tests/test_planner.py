"""Plans against published ones, hand-made numbers and our own network."""

import math

import jax
import numpy as np
import pytest
from data_cases import assert_one_line
from flax import linen as nn
from plan_cases import CT, fingerprint, known, make
from small import load

from medseg_jax import models, planner
from medseg_jax.experiment import volume_plan
from medseg_jax.planner import topology

# Patch, batch and stages; the plans that nnU-Net makes for these data sets.
PUBLISHED = [
  ('hippocampus', 'plain', '3d_fullres', [40, 56, 40], 9, 4),
  ('hippocampus', 'plain', '2d', [56, 40], 366, 4),
  ('hippocampus', 'residual_m', '3d_fullres', [40, 56, 40], 58, 4),
  ('hippocampus', 'residual_l', '3d_fullres', [40, 56, 40], 178, 4),
  ('hippocampus', 'residual_xl', '3d_fullres', [40, 56, 40], 183, 4),
  ('heart', 'plain', '3d_fullres', [80, 192, 160], 2, 6),
  ('heart', 'plain', '2d', [320, 256], 40, 7),
  ('heart', 'residual_m', '3d_fullres', [80, 192, 160], 2, 6),
  ('heart', 'residual_l', '3d_fullres', [112, 288, 224], 2, 6),
  ('heart', 'residual_xl', '3d_fullres', [128, 320, 256], 3, 7),
  ('spleen', 'plain', '3d_fullres', [64, 192, 160], 2, 6),
  ('spleen', 'plain', '2d', [512, 512], 12, 8),
  ('spleen', 'residual_m', '3d_fullres', [64, 160, 160], 2, 6),
  ('spleen', 'residual_l', '3d_fullres', [80, 256, 256], 2, 7),
  ('spleen', 'residual_xl', '3d_fullres', [112, 320, 256], 2, 7),
  ('brats', 'plain', '3d_fullres', [128, 128, 128], 2, 6),
  ('brats', 'plain', '2d', [192, 160], 105, 6),
  ('brats', 'residual_m', '3d_fullres', [128, 128, 128], 2, 6),
  ('brats', 'residual_l', '3d_fullres', [160, 192, 160], 3, 6),
  ('brats', 'residual_xl', '3d_fullres', [160, 192, 160], 5, 6),
  ('prostate', 'plain', '3d_fullres', [20, 320, 256], 2, 7),
]


@pytest.mark.parametrize(
  ('data', 'preset', 'name', 'patch', 'batch', 'stages'), PUBLISHED
)
def test_published_plans(data, preset, name, patch, batch, stages):
  c = known(data, preset=preset)['configurations'][name]
  assert c['patch_size'] == patch
  assert c['batch_size'] == batch
  assert len(c['strides']) == len(c['features']) == stages


def test_published_strides_and_kernels():
  def network(data):
    c = known(data)['configurations']['3d_fullres']
    return c['strides'], c['kernel_sizes']

  one, two, three = [1] * 3, [2] * 3, [3] * 3
  assert network('hippocampus') == ([one] + [two] * 3, [three] * 4)
  assert network('heart') == ([one] + [two] * 4 + [[1, 2, 2]], [three] * 6)
  assert network('spleen') == (
    [one, [1, 2, 2]] + [two] * 4,
    [[1, 3, 3]] + [three] * 5,
  )
  flat = [1, 2, 2]
  assert network('prostate') == (
    [one, flat, flat, two, two, flat, flat],
    [[1, 3, 3]] * 2 + [three] * 5,
  )


def test_the_rest_of_a_configuration():
  plan = known('spleen', channels=('CT',))
  full, flat = (plan['configurations'][k] for k in ('3d_fullres', '2d'))
  assert full['features'] == [32, 64, 128, 256, 320, 320]
  assert flat['features'] == [32, 64, 128, 256, 512, 512, 512, 512]
  assert full['spacing'] == [1.6, 0.79, 0.79] and flat['spacing'] == [0.79] * 2
  assert full['median_shape'] == [187, 512, 512]
  assert full['convs_per_stage'] == 2 and full['residual_blocks'] == []
  batch_dice = {k: c['batch_dice'] for k, c in plan['configurations'].items()}
  assert batch_dice == {'3d_fullres': True, '2d': True, '3d_lowres': True}
  assert full['augment'] == {'rotation_degrees': 30.0, 'in_plane': False}
  assert flat['augment'] == {'rotation_degrees': 180.0, 'in_plane': False}
  deep = known('spleen', preset='residual_xl')['configurations']['3d_fullres']
  assert deep['residual_blocks'] == [1, 3, 4, 6, 6, 6, 6]
  assert deep['convs_per_stage'] == 1
  thin = known('prostate')['configurations']['3d_fullres']
  assert thin['augment'] == {'rotation_degrees': 180.0, 'in_plane': True}


def test_the_dice_is_over_the_batch_unless_a_patch_sees_most_of_a_case():
  for preset in topology.PRESETS:
    for data in ('hippocampus', 'heart', 'spleen', 'brats', 'prostate'):
      found = known(data, preset=preset)['configurations']
      assert {name: c['batch_dice'] for name, c in found.items()} == {
        name: name == '2d' or '3d_lowres' in found for name in found
      }


@pytest.mark.parametrize(
  ('patch', 'degrees', 'in_plane'),
  [  # the last but one of each rank is at its limit
    ((256, 256), 180, False),
    ((48, 32), 180, False),
    ((32, 49), 15, False),
    ((64, 64, 64), 30, False),
    ((64, 40, 16), 30, False),
    ((16, 48, 40), 30, False),
    ((16, 49, 40), 180, True),
  ],
)
def test_long_patches_turn_little_and_thin_ones_in_their_plane(
  patch, degrees, in_plane
):
  assert planner.plan_rotation(patch) == {
    'rotation_degrees': degrees,
    'in_plane': in_plane,
  }


@pytest.mark.parametrize(('residual', 'cost'), [(False, 12416), (True, 17536)])
def test_the_cost_of_a_tiny_network_by_hand(residual, cost):
  # 32 channels on 8 x 8 (2048 elements), 64 on 4 x 4 (1024), 2 classes.
  # Plain: encoder 2 * 2048 + 2 * 1024, decoder 3 * 2048, head 2 * 64.
  # Residual: stem 2048, 1 block 2 * 2048, 3 blocks 6 * 1024 + 1024 for the
  # skip, decoder 2 * 2048, head 2 * 64.
  tiny = topology.make_topology((1.0, 1.0), (8, 8))
  assert tiny.strides == ((1, 1), (2, 2))
  assert topology.sample_cost(tiny, 2, residual=residual) == cost


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize(
  ('spacing', 'patch'), [((1.6, 0.79, 0.79), (24, 48, 40)), ((1, 1), (56, 40))]
)
def test_the_cost_counts_what_the_convolutions_of_our_network_put_out(
  spacing, patch, residual
):
  shape = topology.make_topology(spacing, patch)
  stages = len(shape.strides)
  model = models.create_model(
    'unet',
    num_classes=3,
    depth=stages,
    features=topology.stage_features(stages, len(patch)),
    convs_per_stage=1 if residual else 2,
    residual_blocks=topology.stage_blocks(stages) if residual else 0,
    strides=shape.strides,
    kernel_sizes=shape.kernel_sizes,
    norm='instance',
    down='stride',
  )
  outputs = []

  def record(call, arguments, keywords, context):
    result = call(*arguments, **keywords)
    module = context.module
    is_conv = isinstance(module, nn.Conv | nn.Dense)
    if is_conv or type(module).__name__ == 'Up':
      outputs.append(math.prod(result.shape))
    return result

  image = jax.ShapeDtypeStruct((1, *shape.patch_size, 1), np.float32)
  with nn.intercept_methods(record):
    jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=False), image
    )
  assert sum(outputs) == topology.sample_cost(shape, 3, residual=residual)


def test_target_spacing_of_anisotropic_data():
  rng = np.random.default_rng(0)
  spacings = np.full((21, 3), 0.5)
  # 3.0 to 5.0; the 10th percentile of the 21 numbers is the third.
  spacings[:, 1] = rng.permutation(np.linspace(3, 5, 21))
  shapes = np.tile((300, 20, 280), (21, 1))
  found = fingerprint(spacings, shapes)
  plan = make(found)
  full = plan['configurations']['3d_fullres']
  assert plan['axes'] == [1, 0, 2]
  assert full['spacing'] == pytest.approx([3.2, 0.5, 0.5])
  wanted = np.median(np.round(spacings[:, 1] / 3.2 * 20))
  assert full['median_shape'] == [wanted, 300, 280]
  assert plan['configurations']['2d']['median_shape'] == [300, 280]
  assert plan['fingerprint']['median_spacing'] == [0.5, 4.0, 0.5]
  assert plan['fingerprint']['median_shape'] == [300, 20, 280]
  # With many slices the median stays.
  plan = make(found._replace(shapes=np.tile((300, 100, 280), (21, 1))))
  assert plan['configurations']['3d_fullres']['spacing'] == [4.0, 0.5, 0.5]


def test_the_coarse_axis_never_becomes_finer_than_the_others():
  spacings = np.full((20, 3), 1.0)
  spacings[:, 0] = [0.5] * 4 + [5.0] * 16
  plan = make(fingerprint(spacings, np.tile((20, 200, 200), (20, 1))))
  spacing = plan['configurations']['3d_fullres']['spacing']
  assert spacing == pytest.approx([1.00001, 1, 1], abs=1e-9)
  assert plan['axes'] == [0, 1, 2]


def test_median_shape_is_that_of_the_resampled_cases():
  spacings = [(1, 1, 1), (2, 1, 1), (1, 1, 1), (1, 1, 0.5)]
  shapes = [(20, 30, 40), (30, 30, 40), (50, 31, 40), (70, 90, 45)]
  # At 1 mm: 20, 60, 50, 70; 30, 30, 31, 90; 40, 40, 40, round(22.5) = 22.
  full = make(fingerprint(spacings, shapes))['configurations']['3d_fullres']
  assert full['spacing'] == [1, 1, 1]
  assert full['median_shape'] == [55, 30.5, 40]
  assert full['patch_size'] == [56, 32, 40]


def test_single_slices_have_the_2d_plan_only():
  plan = make(fingerprint((5, 1, 1), (1, 256, 256), 30))
  assert list(plan['configurations']) == ['2d']
  assert 'one slice' in plan['notes']['3d_lowres']


def test_memory_scales_the_batch_and_the_patch():
  def heart(name, memory_gb):
    return known('heart', memory_gb=memory_gb)['configurations'][name]

  assert known('heart')['memory_gb'] == 8.0
  assert known('heart', preset='residual_xl')['memory_gb'] == 40.0
  # 85e6 / 25784320 * 12 = 39.56 samples fit 8 GB.
  assert heart('2d', 4.0)['batch_size'] == 20
  assert heart('2d', 16.0)['batch_size'] == 79
  # 104 patches are 5 % of the data set.
  assert heart('2d', 64.0)['batch_size'] == 104
  small, large = heart('3d_fullres', 4.0), heart('3d_fullres', 24.0)
  assert math.prod(small['patch_size']) < 80 * 192 * 160
  assert math.prod(large['patch_size']) > 80 * 192 * 160
  # L's reference at 8 GB, not at its own 24.
  less = known('heart', preset='residual_l', memory_gb=8.0)
  assert less['configurations']['2d']['batch_size'] == round(
    380e6 / 3 / 40396800 * 12
  )


def test_low_resolution_covers_a_quarter_of_the_median_case():
  plan = known('spleen')
  low = plan['configurations']['3d_lowres']
  steps = np.log(np.array(low['spacing']) / (1.6, 0.79, 0.79)) / np.log(1.03)
  # The ratio starts above 2: x and y grow alone, once.
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
  np.testing.assert_allclose(steps[1:] - steps[0], 1, atol=1e-6)
  exact = np.array((1.6, 0.79, 0.79)) / low['spacing'] * (187, 512, 512)
  assert low['median_shape'] == list(np.round(exact))
  patch = math.prod(low['patch_size'])
  assert patch / exact.prod() >= 0.25
  # One step less would not do, even with the larger of the two patches.
  assert patch / (exact.prod() * 1.03**3) < 0.25
  assert exact.prod() < 187 * 512 * 512 / 2


def test_coarse_axes_wait_for_the_fine_ones():
  low = make(fingerprint((5, 0.8, 0.8), (200, 512, 512), 50))
  spacing = low['configurations']['3d_lowres']['spacing']
  assert spacing[0] == 5 and spacing[1] == spacing[2] > 0.8


@pytest.mark.parametrize('data', ['hippocampus', 'heart', 'brats'])
def test_no_low_resolution_where_a_patch_sees_enough(data):
  plan = known(data)
  assert list(plan['configurations']) == ['3d_fullres', '2d']
  assert plan['notes']['3d_lowres'].startswith('none')


def test_no_low_resolution_that_is_hardly_smaller():
  plan = make(fingerprint((1, 1, 1), (200, 210, 205), 30))
  share = math.prod(plan['configurations']['3d_fullres']['patch_size'])
  share /= 200 * 210 * 205
  assert 0.125 < share < 0.25
  assert '3d_lowres' not in plan['configurations']
  assert 'more than half' in plan['notes']['3d_lowres']


def test_normalization_follows_the_channel_names():
  names = ('ct', 'R', 'rgb_to_0_1', 'noNorm', 'T1')
  found = fingerprint((1, 1, 1), (40, 40, 40), 9, channels=5, size=0.75)
  entries = make(found, channels=names)['normalization']
  schemes = [entry['scheme'] for entry in entries]
  assert schemes == ['ct', 'scale', 'scale', 'none', 'zscore']
  numbers = [entries[0][k] for k in ('low', 'high', 'mean', 'std')]
  assert numbers == [-50, 200, 100, 40]
  entries = make(found._replace(relative_size=0.74), channels=names)
  schemes = [entry['scheme'] for entry in entries['normalization']]
  assert schemes == ['ct', 'scale', 'scale', 'none', 'zscore_nonzero']


def test_there_is_a_note_for_every_choice():
  plan = known('spleen', channels=('CT',))
  notes = plan['notes']
  for key in ('axes', 'spacing', 'normalization', '3d_lowres'):
    assert notes[key]
  for name in plan['configurations']:
    for key in (
      'patch_size',
      'batch_size',
      'strides',
      'kernel_sizes',
      'features',
      'batch_dice',
    ):
      assert notes[f'{name}.{key}']
  assert '160x324x324' in notes['3d_fullres.patch_size']
  assert '51 patches' in notes['3d_fullres.batch_size']
  assert all('\n' not in note for note in notes.values())
  few = known('hippocampus')['notes']['3d_fullres.batch_size']
  assert '9 patches' in few and 'hold 58' in few


@pytest.mark.parametrize(
  ('options', 'parts'),
  [
    ({'preset': 'huge'}, ('preset', 'huge', 'residual_xl')),
    ({'memory_gb': -1.0}, ('memory_gb', '-1')),
    ({'memory_gb': math.nan}, ('memory_gb', 'nan')),
    ({'memory_gb': 1e-9}, ('memory_gb', '1e-09', 'too little')),
    ({'channels': ('T1', 'T2')}, ('2 channel names', '1 channels')),
  ],
)
def test_arguments_that_are_not_allowed(options, parts):
  with pytest.raises(ValueError) as error:
    known('heart', **options)
  assert_one_line(error, *parts)


def test_fingerprints_that_cannot_be_planned():
  with pytest.raises(ValueError) as error:
    make(fingerprint((1, 1), (64, 64), 4))
  assert_one_line(error, '(4, 2)', '[N, 3]')
  with pytest.raises(ValueError) as error:
    make(fingerprint((0, 1, 1), (64, 64, 64), 4))
  assert_one_line(error, 'above 0')
  constant = {**CT, 'percentile_00_5': 7.0, 'percentile_99_5': 7.0}
  found = fingerprint((1, 1, 1), (64, 64, 64), 4)
  with pytest.raises(ValueError) as error:
    make(found._replace(intensities=(constant,)), channels=('CT',))
  assert_one_line(error, 'channel CT', '7')


@pytest.mark.parametrize(
  ('asked', 'at_most', 'name', 'features'),
  [
    (0, 512, '3d_fullres', (32, 64, 128, 256, 320, 320)),
    (16, 512, '3d_fullres', (16, 32, 64, 128, 160, 160)),
    (16, 512, '2d', (16, 32, 64, 128, 256, 256, 256, 256)),
    (33, 166, '3d_fullres', (33, 66, 132, 166, 166, 166)),
  ],
)
def test_one_number_scales_the_features_of_every_configuration(
  asked, at_most, name, features
):
  config = load('auto')
  config.model.features, config.model.max_features = asked, at_most
  config.plan.configuration = name
  volume_plan.apply(config, known('spleen'))
  assert config.model.features == features
