"""Keys of a model's config on the command line, without a config's file."""

import pytest
from data_cases import assert_one_line
from ml_collections import ConfigDict

from medseg_jax.experiment import overrides
from medseg_jax.runtime.errors import InputError


def config():
  return ConfigDict(
    {
      'inference': {
        'overlap': 0.5, 'mirror': False, 'batch_size': 4,
        'patch_size': (16, 16),
      },
      'data': {
        'path': '/data', 'fold': 0, 'classes': ('background', 'left'),
        'window': (), 'spacing': (1.2, 1.0), 'axes': None,
      },
    }
  )  # fmt: skip


def test_split_takes_every_spelling():
  words = (
    'main --mode=predict --config.a.b=1 --config.c=(1, 2) --config.d x '
    '-config.e=-1 --config.f --noconfig.g --config=FILE --output out'
  )
  argv = words.replace('(1, 2)', '(1,2)').split(' ')
  rest, found = overrides.split(argv)
  assert rest == [
    'main', '--mode=predict', '--config=FILE', '--output', 'out'
  ]  # fmt: skip
  assert found == [
    ('a.b', '1'), ('c', '(1,2)'), ('d', 'x'), ('e', '-1'), ('f', 'true'),
    ('g', 'false'),
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('key', 'text', 'value'),
  [
    ('inference.mirror', 'true', True),
    ('inference.mirror', '0', False),
    ('inference.overlap', '0.25', 0.25),
    ('inference.overlap', '0', 0.0),
    ('inference.batch_size', '2', 2),
    ('inference.patch_size', '(32,32)', (32, 32)),
    ('inference.patch_size', '32,32', (32, 32)),
    ('inference.patch_size', '[32, 32]', (32, 32)),
    ('inference.patch_size', '()', ()),
    ('data.spacing', '(2,1.5)', (2, 1.5)),
    ('data.window', '(-100,300)', (-100, 300)),
    ('data.path', '/else where', '/else where'),
    ('data.path', '12', '12'),
    ('data.fold', 'all', 'all'),
    ('data.fold', '3', 3),
    ('data.classes', 'background,liver', ('background', 'liver')),
    ('data.axes', '(1,0)', (1, 0)),
  ],
)
def test_values_have_the_type_of_the_models(key, text, value):
  changed = config()
  overrides.apply(changed, [(key, text)])
  section, name = key.split('.')
  found = changed[section][name]
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
  ('key', 'text', 'parts'),
  [
    ('inference.mirror', 'perhaps', ["'perhaps'", 'true or false']),
    ('inference.overlap', 'much', ["'much'", 'a number, such as 0.5']),
    ('inference.overlap', '1e999', ['a number']),
    ('inference.batch_size', '2.5', ["'2.5'", 'a whole number']),
    ('inference.batch_size', 'True', ['a whole number']),
    ('inference.patch_size', '(32,a)', ['a list like (16, 16)']),
    ('inference.patch_size', '(32,1.5)', ['a list like (16, 16)']),
    ('data.paths', 'true', ['did you mean config.data.path?']),
    ('infrence.mirror', 'true', ['did you mean config.inference.mirror?']),
    ('data.path.more', '1', ['did you mean config.data.path?']),
    ('overlaps', '1', ['did you mean config.inference.overlap?']),
    ('inference', '3', ['is a section', 'config.inference.']),
    ('inference.mirror', 'x' * 200, ["xxx...'"]),
  ],
)
def test_what_does_not_fit_is_one_line(key, text, parts):
  changed = config()
  with pytest.raises(InputError) as error:
    overrides.apply(changed, [(key, text)])
  assert_one_line(error, f'config.{key}', *parts)
  assert len(str(error.value)) < 200
  assert changed == config()


@pytest.mark.parametrize(
  ('key', 'words'),
  [
    ('inference.foo', 'config.inference has the keys batch_size, mirror'),
    ('lr', 'config has the keys data, inference'),
    ('optimiser.lr', 'config has the keys data, inference'),
  ],
)
def test_nothing_is_suggested_where_nothing_is_alike(key, words):
  with pytest.raises(InputError) as error:
    overrides.apply(config(), [(key, '1')])
  assert_one_line(error, f'unknown key config.{key}; ', words)
  assert 'did you mean' not in str(error.value)
