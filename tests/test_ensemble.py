"""A model made of several: written, read, refused, and what it predicts.

The heads of the networks have no weights but a bias, so that their logits are
known; or weights that are random, where only the same is compared.
"""

import zipfile

import numpy as np
import predict_cases
import pytest
from conftest import ROOT
from data_cases import assert_one_line
from ensemble_cases import SCORES, member, write, write_untrained_models
from predict_cases import masks, write_images
from scipy import special

import medseg_jax
from medseg_jax.data.case import Case
from medseg_jax.experiment import (
  ensemble,
  members,
  trained_model,
)
from medseg_jax.inference.cases import predict_cases as predict_cases_of_library
from medseg_jax.programs import export, predict
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError

# See test_in_step.py: logits choose class 1 on average, probabilities class 2.
A = (-9.0, 2.0, 0.0, 0.0)
B = (-9.0, -1.5, 0.4, -9.0)


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
  """Returns the models of two configurations, which see other tiles."""
  return write_untrained_models(tmp_path_factory.mktemp('untrained'))


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
  predict_cases.compile_once(monkeypatch)


@pytest.fixture
def parts(untrained, tmp_path):
  """Returns random members, two folds of each of two configurations."""
  return {
    name: [
      member(source, tmp_path / f'{name}{i}', fold=i, seed=10 * i + len(name))
      for i in range(2)
    ]
    for name, source in untrained.items()
  }


@pytest.fixture
def whole(parts, tmp_path):
  """Returns the folder of an ensemble of these members."""
  return write(tmp_path / 'run' / 'model', parts)


def test_folds_average_logits_and_configurations_probabilities(
  untrained, tmp_path
):
  one, other = untrained['small'], untrained['large']
  paths = {
    'a': member(one, tmp_path / 'a', bias=A),
    'b': member(one, tmp_path / 'b', bias=B, fold=1),
    'c': member(other, tmp_path / 'c', bias=B),
  }
  image = np.random.default_rng(0).normal(0, 100, (40, 24))
  folds = write(tmp_path / 'folds', {'2d': [paths['a'], paths['b']]})
  found = medseg_jax.load_model(folds).predict(image)
  assert (found.label == 1).all()
  expected = special.softmax(np.mean([A, B], 0))
  np.testing.assert_allclose(found.probs[3, 5], expected, atol=1e-3)
  pair = write(tmp_path / 'pair', {'2d': [paths['a']], 'wide': [paths['c']]})
  model = medseg_jax.load_model(pair)
  found = model.predict(image)
  assert (found.label == 2).all()
  expected = (special.softmax(A) + special.softmax(B)) / 2
  np.testing.assert_allclose(found.probs[3, 5], expected, atol=1e-3)
  assert model.classes[1] == 'liver' and model.channel_names == ('CT',)
  assert model.description['scores'] == SCORES
  # The same two of one configuration: folds again, whatever their number.
  paths['c'] = member(one, tmp_path / 'd', bias=B, fold=0)
  joint = joined({'2d': [paths['a'], paths['c']]})
  logits = joint.predict_fn(np.zeros((8, 16, 16, 1)))
  np.testing.assert_allclose(logits[0, 4, 4], np.mean([A, B], 0), rtol=1e-5)


def joined(models):
  mesh = sharding.local_mesh()
  return trained_model.compile_predictor(
    members.load_together(models, mesh), mesh
  )


def predicted(folder, source, output, change=None, **options):
  config = trained_model.read_config(None, folder, '')
  if change:
    change(config)
  predict.run(
    config,
    None,
    model=folder,
    input_path=source,
    output_dir=output,
    **options,
  )
  return masks(output)


def test_equal_members_are_the_single_model(untrained, tmp_path):
  one = member(untrained['small'], tmp_path / 'one', seed=1)
  two = member(untrained['small'], tmp_path / 'two', seed=1, fold=1)
  three = member(untrained['large'], tmp_path / 'three', seed=1)
  scans = write_images(tmp_path / 'in')
  single = predicted(one, scans, tmp_path / 'single')
  twins = write(tmp_path / 'twins', {'2d': [one, two]})
  assert predicted(twins, scans, tmp_path / 'out') == single
  alone = write(tmp_path / 'alone', {'2d': [one]})
  assert predicted(alone, scans, tmp_path / 'out1') == single
  pair = write(tmp_path / 'equal', {'2d': [one], 'also': [one]})
  assert predicted(pair, scans, tmp_path / 'out2') == single
  mixed = write(tmp_path / 'mixed', {'2d': [one, two], 'wide': [three]})
  assert predicted(mixed, scans, tmp_path / 'out3') != single


def test_a_zip_is_the_folder_and_masks_are_kept(
  whole, parts, tmp_path, monkeypatch, capsys
):
  scans = write_images(tmp_path / 'in')
  first = predicted(whole, scans, tmp_path / 'out')
  target = tmp_path / 'ensemble.zip'
  export.run(None, None, output=target, model=whole)
  assert sorted(zipfile.ZipFile(target).namelist()) == sorted(
    ['README.md', 'model.json']
    + [
      f'{name}/fold_{i}/{file}'
      for name in parts
      for i in (0, 1)
      for file in ('README.md', 'model.json', 'model.safetensors')
    ]
  )
  (tmp_path / 'out' / 'b.png').unlink()
  capsys.readouterr()
  assert predicted(target, scans, tmp_path / 'out') == first
  text = capsys.readouterr().out
  assert 'kept      2 masks' in text and '1 mask written' in text
  assert 'small x 2, large x 2' in text
  # Where one member does not fit beside the others they come one by one.
  monkeypatch.setattr(members, 'fit', lambda variables, mesh: False)
  assert predicted(target, scans, tmp_path / 'again') == first
  # Without a folder of its own, and in a zip inside a folder.
  joint = joined(parts)
  scan = np.zeros((20, 30), np.float32) + np.arange(30)
  [alone] = predict_cases_of_library(
    joint.predict_fn,
    [Case('scan', scan[..., None], None, (1.0, 1.0))],
    **joint.settings,
  )
  nested = tmp_path / 'nested.zip'
  with zipfile.ZipFile(target) as old, zipfile.ZipFile(nested, 'w') as new:
    for name in old.namelist():
      new.writestr(f'model/{name}', old.read(name))
  found = medseg_jax.load_model(nested).predict(scan)
  np.testing.assert_array_equal(found.label, alone.label)


def test_what_every_member_has_a_part_in_is_told_apart(whole, parts, tmp_path):
  scans = write_images(tmp_path / 'in', 'a')
  predicted(whole, scans, tmp_path / 'out')

  def wider(config):
    config.inference.overlap = 0.75

  with pytest.raises(InputError, match='another inference.overlap, 0.5'):
    predicted(whole, scans, tmp_path / 'out', change=wider)
  last = parts['large'][1]
  member(last, last, fold=1, seed=99)
  write(whole, parts)
  with pytest.raises(InputError, match='made with other weights'):
    predicted(whole, scans, tmp_path / 'out')
  # A change of the config is one of all configurations.
  config = trained_model.read_config(None, whole, '')
  wider(config)
  weights = trained_model.load_weights(config, None, model=whole)
  assert [p.config.inference.overlap for p in weights.parts] == [0.75, 0.75]
  assert [p.config.inference.patch_size for p in weights.parts] == [
    (16, 16), (32, 32)
  ]  # fmt: skip


def damage(path):
  path.write_bytes(b'x' * 100)


@pytest.mark.parametrize(
  ('spoil', 'words'),
  [
    (lambda f: damage(f / 'model.safetensors'), 'model.safetensors is not'),
    (lambda f: damage(f / 'model.json'), 'model.json is damaged'),
    (lambda f: (f / 'model.json').unlink(), 'cannot be read'),
    (lambda f: member(f, f, fold=1, seed=3), 'is not the model that the ens'),
  ],
)
def test_a_damaged_member_is_named(spoil, words, whole):
  spoil(whole / 'large' / 'fold_1')
  with pytest.raises(InputError, match=words) as caught:
    medseg_jax.load_model(whole)
  assert_one_line(caught, str(whole / 'large' / 'fold_1'))
  # The others are of use.
  medseg_jax.load_model(whole / 'large' / 'fold_0')


def other_axes(description):
  description['preprocessing']['axes'] = [1, 0]


def mirrors(description):
  description['inference']['mirror'] = True
  description['training']['config']['augment']['flip_prob'] = 0.5


def test_what_does_not_go_together_is_refused(untrained, tmp_path):
  changes = {
    'classes': lambda d: d['classes'].__setitem__(1, 'spleen'),
    'label_values': lambda d: d.update(label_values=[0, 1, 2, 9]),
    'output': lambda d: d.update(output='sigmoid'),
    'preprocessing.axes': other_axes,
    'made for volumes': lambda d: d['training']['config']['data'].update(
      source='volumes'
    ),
    'preprocessing.window': lambda d: d['preprocessing'].update(window=[0, 9]),
    'network.features': lambda d: d['network'].update(features=9),
    'inference.patch_size': lambda d: d['inference'].update(patch_size=[8, 8]),
    'mirrored axes': mirrors,
  }
  one = member(untrained['small'], tmp_path / 'one')
  before = write(tmp_path / 'there', {'2d': [one]})
  content = (before / 'model.json').read_bytes()
  for i, (key, change) in enumerate(changes.items()):
    odd = member(untrained['small'], tmp_path / f'odd{i}', change=change)
    together = {'2d': [one, odd]}
    with pytest.raises(InputError, match=f': {key} is ') as caught:
      write(before, together)
    assert_one_line(caught, str(odd), str(one))
    with pytest.raises(InputError, match=f': {key} is '):
      joined(together)
    if i > 4:  # of another configuration it may be
      ensemble.gather({'2d': [one], 'other': [odd]})
  unknown = member(
    one, tmp_path / 'x', change=lambda d: d['training'].update(cases=None)
  )
  for models, words in [
    ({'2d': [one, unknown]}, 'does not say which cases trained'),
    ({'2d': []}, 'no member'),
    ({}, '0 configurations'),
    ({'a/b': [one]}, "a configuration is called 'a/b'"),
    ({'2d': [one, before]}, "is of 'medseg_jax ensemble'"),
  ]:
    with pytest.raises(InputError, match=words) as caught:
      write(before, models)
    assert '\n' not in str(caught.value)
  assert (before / 'model.json').read_bytes() == content
  assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_what_an_ensemble_lists_cannot_lie_outside(whole):
  path = whole / 'model.json'
  text = path.read_text()
  for folder in ('../small/fold_0', '/etc', ''):
    path.write_text(text.replace('small/fold_0', folder))
    with pytest.raises(InputError, match='is no folder of the ensemble'):
      ensemble.read(whole)
  path.write_text(text.replace('"format_version": 1', '"format_version": 2'))
  with pytest.raises(
    InputError, match="reads 'medseg_jax ensemble', version 1"
  ):
    ensemble.read(whole)


def test_programs_are_of_members(whole, tmp_path):
  target = tmp_path / 'x.onnx'
  zipped = tmp_path / 'x.zip'
  export.run(None, None, output=zipped, model=whole)
  for form in ('onnx', 'stablehlo'):
    for path in (whole, zipped):
      with pytest.raises(InputError) as caught:
        export.run(None, None, output=target, form=form, model=path)
      assert_one_line(caught, 'an ensemble of 4 models', 'small/fold_0')
  assert not target.exists()


def test_the_command_line_takes_an_ensemble(whole, tmp_path, refused):
  scans = write_images(tmp_path / 'in', 'a')
  text = refused(
    '--mode=predict',
    f'--model={whole}',
    f'--input={scans}',
    f'--output={tmp_path / "out"}',
    '--config.inference.overlap=2',
  )
  assert 'config.inference.overlap is 2' in text and ROOT.is_dir()
