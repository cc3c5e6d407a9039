"""Edited plans, and plans as JSON and as the table of the terminal."""

import copy
import json
import math

import pytest
from data_cases import assert_one_line
from plan_cases import CT, DATA, fingerprint, known, make

from medseg_jax import planner
from medseg_jax.data import normalize, preprocess
from medseg_jax.planner import check
from medseg_jax.planner.plan import SCHEME_OF_NAME
from medseg_jax.runtime.errors import InputError

# Where in the plan, what an editor wrote there, and what the line says.
EDITS = [
  (('axes',), [0, 1, 1], ('axes', '[0, 1, 1]')),
  (('axes',), [0, 'y', 1], ('axes', '"y"')),
  (('num_classes',), 0, ('num_classes is 0',)),
  (('memory_gb',), 'much', ('memory_gb', 'much')),
  (('channel_names',), [], ('channel_names',)),
  (('normalization',), [], ('normalization is []', 'each channel, 1')),
  (('normalization', 0, 'scheme'), 'CT', ('normalization[0].scheme', 'ct,')),
  (('normalization', 0, 'high'), -60, ('normalization[0].high', 'above low')),
  (('normalization', 0, 'std'), 0.0, ('normalization[0].std', '0.0')),
  (('fingerprint', 'median_shape'), [1, 2], ('fingerprint.median_shape',)),
  (('configurations',), {}, ('configurations is []', '3d_fullres')),
  (('configurations',), 5, ('configurations is 5;', '3d_fullres')),
  (('configurations',), ['2d'], ('configurations is ["2d"];', 'an object')),
  (('configurations', '3d'), {}, ('configurations', '"3d"', '3d_fullres')),
  (('configurations', '2d'), None, ('configurations.2d is null', 'spacing')),
]
FULL = ('configurations', '3d_fullres')
EDITS += [
  ((*FULL, key), value, (f'3d_fullres.{key}', *parts))
  for key, value, parts in [
    ('spacing', [1.6, 0.79], ('[1.6, 0.79]', '3 mm')),
    ('spacing', [1.6, 0.79, math.inf], ('Infinity',)),
    ('patch_size', [64, 192, 150], ('[16, 32, 32]', 'product of its strides')),
    ('patch_size', [64.0, 192, 160], ('64.0',)),
    ('patch_size', [0, 192, 160], ('[0, 192, 160]',)),
    ('batch_size', 0, ('is 0',)),
    ('batch_size', True, ('is true',)),
    ('convs_per_stage', 1.5, ('1.5',)),
    ('features', [], ('[]',)),
    ('features', 32, ('32', 'each stage')),
    ('strides', [[1, 1, 1]] * 5, ('each stage (6, as features has)',)),
    ('strides', [[1, 1]] * 6, ('3 whole numbers',)),
    ('kernel_sizes', [[3, 3, 3]] * 7, ('each stage (6, as features has)',)),
    ('kernel_sizes', [3] * 6, ('[3, 3, 3, 3, 3, 3]',)),
    ('residual_blocks', [1, 3], ('[1, 3]', 'each stage (6,')),
    ('batch_dice', 'no', ('"no"', 'true or false')),
    ('learning_rate', 0.1, ('unknown', 'patch_size')),
  ]
]
EDITS += [
  ((*FULL, 'strides', 0), [1, 2, 2], ('strides[0]', '[1, 2, 2]')),
  ((*FULL, 'augment', 'rotation_degrees'), 270, ('rotation_degrees', '270')),
  ((*FULL, 'augment', 'in_plane'), 1, ('augment.in_plane is 1',)),
  (('configurations', '2d', 'augment', 'in_plane'), True, ('2d.augment',)),
]


@pytest.mark.parametrize(('path', 'value', 'parts'), EDITS)
def test_an_edit_that_makes_no_sense_names_its_key(path, value, parts):
  plan = known('spleen', channels=('CT',))
  place = plan
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  with pytest.raises(ValueError) as error:
    planner.check_plan(plan)
  assert_one_line(error, *parts)


def test_plans_have_the_schemes_that_the_data_have():
  assert check.SCHEMES == normalize.SCHEMES
  assert set(SCHEME_OF_NAME.values()) <= set(normalize.SCHEMES)
  assert normalize.Channel._fields == check.SCHEME_KEYS


@pytest.mark.parametrize('scheme', normalize.SCHEMES)
@pytest.mark.parametrize('std', [0.0, -1.0, math.inf, math.nan, 1e-3])
def test_plan_and_data_agree_on_the_std(scheme, std):
  edited = known('spleen')
  entry = {'scheme': scheme, 'low': 0.0, 'high': 1.0, 'mean': 0.0, 'std': std}
  edited['normalization'] = [entry]
  channels = (normalize.Channel(**entry),)
  settings = preprocess.Preprocessing(channels=channels)
  if std == 1e-3:
    planner.check_plan(edited)
    preprocess.check(settings)
    return
  with pytest.raises(ValueError) as error:
    planner.check_plan(edited)
  assert_one_line(error, f'normalization[0].std is {json.dumps(std)}')
  with pytest.raises(InputError) as error:
    preprocess.check(settings)
  assert_one_line(error, f'a std of {std:g}', 'above 0')


def test_every_missing_key_is_named():
  plan = known('spleen')
  places = {
    '': (),
    'fingerprint.': ('fingerprint',),
    'normalization[0].': ('normalization', 0),
    'configurations.3d_fullres.': FULL,
    'configurations.3d_fullres.augment.': (*FULL, 'augment'),
  }
  for prefix, path in places.items():
    place = plan
    for part in path:
      place = place[part]
    for key in list(place):
      edited = copy.deepcopy(plan)
      where = edited
      for part in path:
        where = where[part]
      del where[key]
      if key == 'notes':
        planner.check_plan(edited)
        continue
      with pytest.raises(ValueError) as error:
        planner.check_plan(edited)
      assert str(error.value) == f'{prefix}{key} is missing'
  with pytest.raises(ValueError, match='the plan is null; .* an object with'):
    planner.check_plan(None)


def test_sensible_edits_pass():
  plan = known('spleen')
  full = plan['configurations']['3d_fullres']
  full |= {'patch_size': [32, 64, 96], 'batch_size': 1, 'spacing': [2, 1, 1.5]}
  full['features'] = [8, 16, 32, 64, 80, 80]
  del plan['configurations']['3d_lowres'], plan['notes']
  planner.check_plan(json.loads(json.dumps(plan)))


@pytest.mark.parametrize('data', DATA)
def test_the_json_gives_the_plan_back_with_short_lists_on_one_line(data):
  plan = known(data, preset='residual_m')
  text = planner.to_json(plan)
  assert json.loads(text) == plan
  lines = [line.strip() for line in text.splitlines()]
  full = plan['configurations']['3d_fullres']
  assert f'"patch_size": {full["patch_size"]},' in lines
  assert f'"features": {full["features"]},' in lines
  assert f'"strides": {full["strides"]},' in lines
  for line in lines:
    assert len(line) <= 120 or line.count('"') == 4  # a note


def test_the_table_is_aligned_and_at_most_80_columns():
  found = fingerprint((12.345678, 0.79, 0.79), (1187, 1512, 1512), 41)
  plan = make(
    found._replace(intensities=(CT,) * 12),
    channels=[f'channel {i}' for i in range(12)],
    preset='residual_xl',
    memory_gb=80.0,
  )
  for shown in (plan, known('spleen'), known('hippocampus')):
    text = planner.describe(shown)
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if 'spacing mm' in line)
    count = len(shown['configurations'])
    table = lines[start : start + 1 + count]
    assert len({len(line) for line in table}) == 1
    for name, line in zip(shown['configurations'], table[1:], strict=True):
      c = shown['configurations'][name]
      assert line.split()[0] == name
      assert line.split()[3:] == [
        'x'.join(map(str, c['patch_size'])),
        str(c['batch_size']),
        str(len(c['strides'])),
      ]
  assert 'strides         1 1x2x2 2 2 2 2' in planner.describe(known('spleen'))
  assert '32 64 128 256 320 320' in planner.describe(known('spleen'))
