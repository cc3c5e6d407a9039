"""Masks of whoever made them against labels: the numbers of an evaluation."""

import csv
import json
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
import tifffile
from conftest import ROOT, ball, disc, write_pairs, write_volumes
from data_cases import assert_all_in, assert_one_line, save_palette
from PIL import Image
from small import load, shrink, write_untrained
from volume_cases import save

from medseg_jax import main
from medseg_jax.experiment import config_files
from medseg_jax.metrics.case_scores import score_case
from medseg_jax.programs import evaluate, predict, score
from medseg_jax.runtime.errors import InputError


def rows_of(folder):
  with open(folder / 'cases.csv') as file:
    return list(csv.DictReader(file))


def run(tmp_path, *, keys=(), **options):
  """Returns the summary of pred/ against true/, and the rows by case, class."""
  summary = score.run(
    tmp_path / 'pred', tmp_path / 'true', tmp_path / 'out', keys=keys, **options
  )
  assert json.loads((tmp_path / 'out' / 'summary.json').read_text()) == summary
  return summary, {
    (row['case'], row['class']): row for row in rows_of(tmp_path / 'out')
  }


def assert_rows(rows, case, expected):
  """Checks the rows of a case against what `score_case` returns."""
  for name, values in expected['classes'].items():
    row = rows[case, name]
    assert float(row['pixel_accuracy']) == expected['pixel_accuracy']
    for key, value in values.items():
      text = row[key]
      assert (not np.isfinite(value)) if text == '' else float(text) == value


@pytest.mark.parametrize('source', ['folder', 'volumes'])
def test_the_rows_are_those_of_an_evaluation(source, tmp_path):
  """Of the same masks, which a network of random weights makes."""
  data, workdir = tmp_path / 'data', tmp_path / 'run'
  if source == 'folder':
    write_pairs(data, 10)
    folders, suffix = ('images', 'labels'), '.png'
    config = shrink(load('unet'), path=data)
    config.data.source = source
  else:
    write_volumes(data, 6)
    folders, suffix = ('imagesTr', 'labelsTr'), '.nii.gz'
    config = shrink(load('auto_cpu'), path=data)
    shutil.copy(data / 'dataset.json', tmp_path)  # above the labels
  write_untrained(config, workdir)
  resolved = config_files.read_config(workdir)
  evaluate.run(resolved, workdir)
  (cases,) = (workdir / 'evaluation').iterdir()
  images = tmp_path / 'images'
  for place, folder in zip((images, tmp_path / 'true'), folders, strict=True):
    place.mkdir()
    for name in {row['case'] for row in rows_of(cases)}:
      shutil.copy(data / folder / f'{name}{suffix}', place)
  predict.run(
    resolved, workdir, input_path=images, output_dir=tmp_path / 'pred'
  )
  summary, _ = run(tmp_path)
  assert rows_of(tmp_path / 'out') == rows_of(cases)
  expected = json.loads((cases / 'summary.json').read_text())
  for key in ('num_cases', 'num_failed', 'classes', 'mean'):
    assert summary[key] == expected[key]
  assert summary['step'] is None and summary['unknown_values'] == {}


def write(path, index, kind):
  """Writes class indices as a file of that kind; returns the values."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if kind == 'palette':
    save_palette(path.with_suffix('.png'), index, [(9, 9, 9), (200, 0, 0)])
    return (0, 1)
  if kind == '16 bit':
    values = (0, 1000)
    array = np.take(values, index).astype(np.uint16)
    tifffile.imwrite(path.with_suffix('.tif'), array)
    return values
  suffix, mode = {
    'grey': ('.png', 'L'),
    'RGB': ('.png', 'RGB'),
    '1 bit': ('.bmp', '1'),
    'jpeg': ('.jpg', 'L'),
  }[kind]
  image = Image.fromarray((index * 255).astype(np.uint8)).convert(mode)
  image.save(path.with_suffix(suffix))
  return (0, 255)


@pytest.mark.parametrize(
  'kind', ['grey', 'RGB', '1 bit', '16 bit', 'palette', 'jpeg']
)
def test_images_of_each_kind(kind, tmp_path):
  arrays = {}
  for i in range(3):
    pred, label = disc(40, i), disc(40, i + 10)
    write(tmp_path / 'pred' / f'c{i}', pred.astype(int), kind)
    write(tmp_path / 'true' / f'c{i}_mask', label.astype(int), kind)
    arrays[f'c{i}'] = pred.astype(int), label.astype(int)
  summary, rows = run(tmp_path)
  assert len(rows) == 6 and summary['num_failed'] == 0
  for name, (pred, label) in arrays.items():
    found = score_case(
      pred, label, classes=('background', 'foreground'), spacing=(1, 1)
    )
    assert_rows(rows, name, found)


def test_volumes_flipped_and_permuted_and_the_spacing_of_the_label(tmp_path):
  affine = np.diag([0.5, 2.0, 3.0, 1.0])
  for i in range(2):
    pred, label = (ball((14, 15, 13), seed=i + k) for k in (0, 20))
    save(tmp_path / 'true' / f'c{i}.nii', label, affine=affine)
    image = nib.Nifti1Image(pred, affine)
    turned = nib.orientations.axcodes2ornt('PSL')
    turned = image.as_reoriented(
      nib.orientations.ornt_transform(nib.io_orientation(image.affine), turned)
    )
    (tmp_path / 'pred').mkdir(exist_ok=True)
    turned.to_filename(tmp_path / 'pred' / f'c{i}.nii.gz')
    assert turned.shape != image.shape
  keys = [
    ('data.classes', 'background,front,back'),
    ('evaluation.surface_tolerance', '2.5'),
    ('evaluation.lesions', 'true'),
  ]
  summary, rows = run(tmp_path, keys=keys)
  assert list(summary['classes']) == ['background', 'front', 'back']
  for i in range(2):
    pred, label = (ball((14, 15, 13), seed=i + k) for k in (0, 20))
    found = score_case(
      *(array.T for array in (pred, label)),
      classes=('background', 'front', 'back'),
      spacing=(3.0, 2.0, 0.5),
      surface_tolerance=2.5,
      lesions=True,
    )
    for name, values in found['classes'].items():
      row = rows[f'c{i}', name]
      for key, value in values.items():
        assert float(row[key]) == pytest.approx(value, rel=1e-6)


def test_regions_and_what_nobody_labelled(tmp_path):
  content = {
    'channel_names': {'0': 'CT'},
    'labels': {'background': 0, 'whole': [1, 2], 'core': 2, 'ignore': 3},
    'regions_class_order': [1, 2],
  }
  rng = np.random.default_rng(0)
  pred, label = rng.integers(0, 3, (5, 6, 7)), rng.integers(0, 4, (5, 6, 7))
  save(tmp_path / 'pred' / 'a.nii.gz', pred.astype(np.uint8))
  save(tmp_path / 'true' / 'a.nii.gz', label.astype(np.uint8))
  (tmp_path / 'true' / 'dataset.json').write_text(json.dumps(content))
  summary, rows = run(tmp_path)
  assert list(summary['classes']) == ['background', 'whole', 'core']
  known = label != 3
  for name, ids in (('whole', (1, 2)), ('core', (2,))):
    p, t = (np.isin(array, ids) & known for array in (pred, label))
    assert int(rows['a', name]['tp']) == (p & t).sum()
    assert int(rows['a', name]['fp']) == (p & ~t).sum()
    assert int(rows['a', name]['fn']) == (t & ~p).sum()


def three_volumes(tmp_path):
  for name in 'abc':
    label = ball((9, 9, 9), seed=ord(name))
    save(tmp_path / 'pred' / f'{name}.nii.gz', label)
    save(tmp_path / 'true' / f'{name}.nii.gz', label)


@pytest.mark.parametrize(
  'damage',
  ['cut', 'shape', 'place', 'float', 'label value', 'missing', 'twice'],
)
def test_a_bad_file_costs_none_of_the_others(damage, tmp_path, refused, capsys):
  three_volumes(tmp_path)
  bad, words = tmp_path / 'pred' / 'b.nii.gz', ['b.nii.gz']
  if damage == 'cut':
    bad.write_bytes(bad.read_bytes()[:50])
  elif damage == 'shape':
    save(bad, np.ones((9, 9, 8), np.uint8))
    words = ['b.nii.gz', 'shape 9x9x8 against 9x9x9']
  elif damage == 'place':
    affine = np.diag([1, 1, 2, 1.0])
    affine[0, 3] = 0.3
    save(bad, ball((9, 9, 9), 0), affine=affine)
    words = ['not on the grid of', '0.3 voxels', 'grid_tolerance']
  elif damage == 'float':
    save(bad, np.full((9, 9, 9), 0.5, np.float32))
    words = ['0.5', 'whole numbers']
  elif damage == 'label value':
    bad = tmp_path / 'true' / 'b.nii.gz'
    save(bad, np.full((9, 9, 9), 7, np.uint8))
    content = {'labels': {'0': 'background', '1': 'left', '2': 'right'}}
    (tmp_path / 'dataset.json').write_text(json.dumps(content))
    words = ['true/b.nii.gz', 'label ids of no class: 7 (729 voxels)']
  elif damage == 'missing':
    bad.unlink()
    words = ['true/b.nii.gz: a label without its prediction in']
  else:
    shutil.copy(bad, bad.with_suffix(''))
    words = ['the name of the case, b, is also that of']
  flags = [f'--{key}={tmp_path}/{folder}' for key, folder in (
    ('predictions', 'pred'), ('labels', 'true'), ('output', 'out'),
  )]  # fmt: skip
  text = refused('--mode=score', *flags)
  assert text.startswith('error: not scored: 1 of 3 labels: ')
  assert_all_in(text, *words)
  summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  assert (summary['num_cases'], summary['num_failed']) == (2, 1)
  assert summary['mean']['dice'] == 1.0
  assert_all_in(summary['failed']['b'], *words)


def test_what_belongs_to_no_label_and_values_that_no_label_has(
  tmp_path, monkeypatch, capsys
):
  three_volumes(tmp_path)
  label = ball((9, 9, 9), seed=ord('b'))
  pred = label.copy()
  pred[label == 2] = 5
  pred[0, 0, 0] = 9  # in the background, which does not make it right
  save(tmp_path / 'pred' / 'b.nii.gz', pred)
  save(tmp_path / 'pred' / 'other.nii.gz', pred)
  flags = ['--mode=score', '--config.evaluation.lesions=true']
  flags += [f'--predictions={tmp_path}/pred', f'--labels={tmp_path}/true']
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'argv', ['main', *flags])
  assert main.main() == 0
  out = capsys.readouterr().out
  assert 'no label belongs to other.nii.gz' in out
  wrong = int((label == 2).sum())
  assert f'values that no label has: 5 ({wrong} times), 9 (1 times)' in out
  assert 'foreground mean' in out and 'values    0 background, 1 ' in out
  rows = {
    (row['case'], row['class']): row
    for row in rows_of(tmp_path / 'runs' / 'score')
  }
  assert not any(name == '' for _, name in rows)
  second = rows['b', 'label_2']
  assert (int(second['tp']), int(second['fn'])) == (0, wrong)
  background = rows['b', 'background']
  assert int(background['tp']) == (label == 0).sum() - 1
  assert float(rows['b', 'label_1']['dice']) == 1.0
  assert float(background['pixel_accuracy']) == 1 - (wrong + 1) / 9**3
  summary = json.loads((tmp_path / 'runs/score/summary.json').read_text())
  assert summary['unknown_values'] == {'b': {'5': wrong, '9': 1}}


def test_values_of_no_label_in_images(tmp_path, capsys):
  label = disc(40, 3) * 255
  pred = np.where(label, 1, 0)
  for folder, array in (('pred', pred), ('true', label)):
    (tmp_path / folder).mkdir()
    image = Image.fromarray(array.astype(np.uint8))
    image.save(tmp_path / folder / 'a.png')
  _, rows = run(tmp_path)
  assert f'1 ({(label > 0).sum()} times)' in capsys.readouterr().out
  assert float(rows['a', 'foreground']['dice']) == 0.0
  assert int(rows['a', 'background']['fp']) == 0


def test_another_report_is_not_lost(tmp_path):
  three_volumes(tmp_path)
  first, _ = run(tmp_path)
  assert run(tmp_path)[0] == first  # once more, of the same
  shutil.copytree(tmp_path / 'pred', tmp_path / 'more')
  args = tmp_path / 'more', tmp_path / 'true', tmp_path / 'out'
  with pytest.raises(InputError) as error:
    score.run(*args)
  assert_one_line(error, 'out/summary.json', 'is there already', '--overwrite')
  assert score.run(*args, overwrite=True)['predictions'].endswith('more')
  (tmp_path / 'out' / 'summary.json').write_text('{"mine": 1}')
  with pytest.raises(InputError, match='is there already'):
    run(tmp_path)
  (tmp_path / 'out' / 'summary.json').unlink()
  with pytest.raises(InputError, match='cases.csv: is there already'):
    run(tmp_path)


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--labels=true'], ['--mode=score needs --predictions=FOLDER']),
    (['--predictions=pred'], ['--mode=score needs --labels=FOLDER']),
    (['--predictions=pred', '--labels=no'], ['no: no such folder']),
    (['--predictions=true', '--labels=empty'], ['empty: no masks; found']),
    (['--predictions=empty', '--labels=true'], ['empty: no volumes']),
    (['--config.data.clases=a,b'], ['config.data.clases', 'data.classes?']),
    (['--config.data.label_values=(0,x)'], ['config.data.label_values', 'x']),
    (['--config.data.grid_tolerance=-1'], ['data.grid_tolerance is -1']),
    (['--config.data.label_values=(0,1,2)', '--config.data.classes=a,b'],
     ['config.data.classes', '3 label values']),
    (['--model=x'], ['needs no model']),
    ([f'--config={ROOT}/configs/unet.py'], ['needs no model and no --config']),
  ],
)  # fmt: skip
def test_wrong_flags(flags, words, tmp_path, refused, monkeypatch):
  three_volumes(tmp_path)
  (tmp_path / 'empty').mkdir()
  monkeypatch.chdir(tmp_path)
  both = ['--predictions=pred', '--labels=true']
  given = any('predictions' in f or 'labels=' in f[:9] for f in flags)
  text = refused('--mode=score', *flags, *([] if given else both))
  assert text.startswith('error: ') and text.count('\n') == 1
  assert_all_in(text, *words)
  assert not (tmp_path / 'runs').exists()


def test_stems_with_suffixes_and_two_that_fit(tmp_path):
  for place, names in (
    ('true', ('a_mask', 'b', 'c', 'd', 'd_label')),
    ('pred', ('a', 'b_segmentation', 'c_mask', 'c_anno', 'd')),
  ):
    for name in names:
      save(tmp_path / place / f'{name}.nii.gz', ball((9, 9, 9), 0))
  with pytest.raises(InputError, match='not scored: 2 of 5 labels') as error:
    run(tmp_path)
  assert 'c_anno.nii.gz and c_mask.nii.gz are both its prediction' in str(error)
  summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  assert set(summary['failed']) == {'c', 'd_label'}
  assert 'the second label of' in summary['failed']['d_label']
  names = {row['case'] for row in rows_of(tmp_path / 'out') if row['class']}
  assert names == {'a', 'b_segmentation', 'd'}
