"""Masks of images: what goes on, what is kept, what fails, what is in the way.

The weights are random: what is tried here does not ask what a mask looks like.
"""

import errno
import json
import pathlib
import shutil

import jax
import numpy as np
import predict_cases
import pytest
from data_cases import assert_all_in, assert_one_line
from PIL import Image
from predict_cases import masks, run, write_images
from small import load, shrink, write_untrained

import medseg_jax
from medseg_jax.data.case import Case
from medseg_jax.data.formats.images import read_mask
from medseg_jax.data.preprocess import Channel, Preprocessing, preprocess
from medseg_jax.data.sources.to_predict import MASK_LIST
from medseg_jax.experiment import (
  config_files,
  model_folder,
  prediction_files,
  trained_model,
)
from medseg_jax.experiment.prediction_targets import MASK, Job, Target
from medseg_jax.inference import decoding
from medseg_jax.inference.cases import predict_cases as predict_cases_of_library
from medseg_jax.inference.cases import predict_each
from medseg_jax.programs import predict
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return predict_cases.write_model(tmp_path_factory.mktemp('predict') / 'run')


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
  predict_cases.compile_once(monkeypatch)


@pytest.fixture
def scans(tmp_path):
  return write_images(tmp_path / 'in')


def count_predictions(monkeypatch):
  """Returns a list that the names of all cases predicted go to."""
  names = []

  def watch(predict_fn, jobs, **options):
    for job, prediction in predict_each(predict_fn, jobs, **options):
      names.append(job.name)
      yield job, prediction

  monkeypatch.setattr(predict, 'predict_each', watch)
  return names


def test_a_killed_prediction_goes_on(workdir, scans, tmp_path, monkeypatch):
  run(workdir, scans, tmp_path / 'whole')
  real, calls = pathlib.Path.replace, []

  def killed(self, target):
    calls.append(target)
    if len(calls) == 2:
      raise KeyboardInterrupt  # after the record, before the mask is there
    return real(self, target)

  out = tmp_path / 'out'
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
      run(workdir, scans, out)
  assert list(masks(out)) == ['a.png']
  # What a kill by -9 leaves besides: a file half written, a line half written.
  job = Job('b', (), (Target(MASK, out / 'b.png'),))
  unfinished = prediction_files._unfinished(job.target)
  unfinished.write_bytes(b'half')
  unfinished.with_name(f'.{unfinished.name}.99.tmp').write_bytes(b'half')
  with open(out / MASK_LIST, 'a') as file:
    file.write('{"mask": "b.png", "sha')
  names = count_predictions(monkeypatch)
  run(workdir, scans, out)
  assert names == ['b', 'c']
  assert masks(out) == masks(tmp_path / 'whole')
  assert sorted(p.name for p in out.iterdir()) == [
    'a.png', 'b.png', 'c.png', 'panels', MASK_LIST, 'volumes.csv'
  ]  # fmt: skip
  run(workdir, scans, out)
  assert names == ['b', 'c']


def test_masks_that_are_there_are_counted_and_made_anew_on_request(
  workdir, scans, tmp_path, monkeypatch, capsys
):
  out = tmp_path / 'out'
  run(workdir, scans, out)
  before = masks(out)
  shutil.rmtree(out / 'panels')
  write_images(scans, 'd')
  capsys.readouterr()
  names = count_predictions(monkeypatch)
  run(workdir, scans, out)
  text = capsys.readouterr().out
  assert_all_in(text, 'kept      3 masks', '1 mask written to', '--overwrite')
  run(workdir, scans, out, overwrite=True)
  assert names == [*'d', *'abcd']
  assert before.items() <= masks(out).items()


def forget_weights(path):
  path.write_text(path.read_text().replace('"weights": "', '"weights": "x'))


@pytest.mark.parametrize(
  ('spoil', 'change', 'reason'),
  [
    (
      lambda scans, out: (out / MASK_LIST).unlink(), None,
      'nothing tells that this program made it',
    ),
    (
      lambda scans, out: (out / 'b.png').write_bytes(b'by hand'), None,
      'it was changed since',
    ),
    (
      lambda scans, out: write_images(scans, 'b', seed=9), None,
      'another image of this name',
    ),
    (
      None, lambda config: config.inference.update(overlap=0.25),
      'another inference.overlap, 0.5 and not 0.25',
    ),
    (
      lambda scans, out: forget_weights(out / MASK_LIST), None,
      'other weights',
    ),
  ],
  ids=['foreign', 'edited', 'image', 'settings', 'weights'],
)  # fmt: skip
def test_what_is_not_the_mask_is_refused_before_any_work(
  workdir, scans, tmp_path, spoil, change, reason
):
  out = tmp_path / 'out'
  run(workdir, scans, out)
  (out / 'a.png').unlink()
  if spoil:
    spoil(scans, out)
  before = masks(out)
  with pytest.raises(InputError) as error:
    run(workdir, scans, out, change=change)
  assert_one_line(error, '.png: is there', 'not overwritten', reason)
  assert_one_line(error, '--overwrite')
  assert masks(out) == before
  run(workdir, scans, out, change=change, overwrite=True)
  assert sorted(masks(out)) == ['a.png', 'b.png', 'c.png']
  run(workdir, scans, out, change=change)  # and now all is as recorded


def test_how_many_tiles_at_once_makes_no_other_mask(workdir, scans, tmp_path):
  run(workdir, scans, tmp_path / 'out')
  before = masks(tmp_path / 'out')
  run(
    workdir, scans, tmp_path / 'out',
    change=lambda config: config.inference.update(batch_size=1),
  )  # fmt: skip
  assert masks(tmp_path / 'out') == before


@pytest.mark.parametrize('overwrite', [False, True])
def test_an_image_is_never_replaced_by_its_mask(
  workdir, scans, tmp_path, overwrite
):
  array = np.arange(200, dtype=np.uint8).reshape(10, 20)
  Image.fromarray(array).save(scans / 'd.png')
  before = (scans / 'd.png').read_bytes()
  with pytest.raises(InputError) as error:
    run(workdir, scans, scans, overwrite=overwrite)
  assert_one_line(error, 'd.png', 'would replace the image itself')
  assert (scans / 'd.png').read_bytes() == before
  # Beside their images, masks of an earlier call are no images.
  (scans / 'd.png').unlink()
  run(workdir, scans, scans)
  run(workdir, scans, scans)
  assert sorted(masks(scans)) == ['a.png', 'b.png', 'c.png']
  # Nor are those below them.
  for path in (*scans.glob('*.png'), scans / MASK_LIST):
    path.unlink()
  shutil.rmtree(scans / 'panels')
  for name in ('one', 'two', 'two'):
    run(workdir, scans, scans / name)


def test_a_folder_in_a_masks_or_the_records_place(workdir, scans, tmp_path):
  (tmp_path / 'out' / 'b.png').mkdir(parents=True)
  with pytest.raises(InputError, match='b.png: a folder, where a mask'):
    run(workdir, scans, tmp_path / 'out', overwrite=True)
  for name, make in (
    ('folder', lambda path: path.mkdir()),
    ('text', lambda path: path.write_text('my own\nnotes\n')),
  ):
    (tmp_path / name).mkdir()
    make(tmp_path / name / MASK_LIST)
    with pytest.raises(InputError, match='no list of masks'):
      run(workdir, scans, tmp_path / name, overwrite=True)
  assert (tmp_path / 'text' / MASK_LIST).read_text() == 'my own\nnotes\n'


@pytest.mark.parametrize(
  'line', [b'\0' * 50, b'[' * 100_000, b'{"mask": 3}', b'null', b'{"mask": "a']
)
def test_damaged_lines_of_the_record_cost_their_mask_only(
  workdir, scans, tmp_path, monkeypatch, line
):
  out = tmp_path / 'out'
  run(workdir, scans, out)
  lines = (out / MASK_LIST).read_bytes().splitlines()
  (out / MASK_LIST).write_bytes(b'\n'.join([lines[0], line, lines[2]]))
  with pytest.raises(InputError, match='b.png: is there already'):
    run(workdir, scans, out)
  (out / 'b.png').unlink()
  names = count_predictions(monkeypatch)
  run(workdir, scans, out)
  assert names == ['b']
  run(workdir, scans, out)
  assert names == ['b']


def test_a_full_disk_leaves_whole_masks_and_the_command_goes_on(
  workdir, scans, tmp_path, monkeypatch
):
  real, out = pathlib.Path.write_bytes, tmp_path / 'out'

  def write_bytes(self, content):
    if (out / 'a.png').exists() and 'unfinished' in self.name:
      real(self, content[:20])
      raise OSError(errno.ENOSPC, 'No space left on device')
    return real(self, content)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'write_bytes', write_bytes)
    with pytest.raises(InputError) as error:
      run(workdir, scans, out)
  assert_one_line(error, out / 'b.png', 'No space left', '1 mask ', 'goes on')
  assert read_mask(out / 'a.png').shape == (20, 30)
  assert sorted(p.name for p in out.iterdir() if p.is_file()) == [
    'a.png', MASK_LIST
  ]  # fmt: skip
  names = count_predictions(monkeypatch)
  run(workdir, scans, out)
  assert names == ['b', 'c'] and len(masks(out)) == 3


def test_pictures_that_fail_are_one_line(
  workdir, scans, tmp_path, monkeypatch, capsys
):
  before = sorted(workdir.rglob('*'))
  run(workdir, scans, tmp_path / 'first')
  assert sorted(workdir.rglob('*')) == before  # it may be read-only
  assert len(list((tmp_path / 'first' / 'panels').iterdir())) == 3

  def refuse(path, picture):
    raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr(predict, 'save_png', refuse)
  capsys.readouterr()
  run(workdir, scans, tmp_path / 'out')
  warnings = [
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith('warning')
  ]
  assert len(warnings) == 1 and len(masks(tmp_path / 'out')) == 3
  assert_all_in(warnings[0], 'Permission denied', tmp_path / 'out' / 'panels')


def test_the_record_is_for_people(workdir, scans, tmp_path):
  run(workdir, scans, tmp_path / 'out')
  lines = (tmp_path / 'out' / MASK_LIST).read_text().splitlines()
  line = json.loads(lines[0])
  assert line['mask'] == 'a.png' and line['image'] == [str(scans / 'a.tif')]
  assert line['settings']['inference.overlap'] == 0.5
  assert line['settings']['model.depth'] == 2


def test_the_mesh_is_that_of_this_machine(workdir, scans, tmp_path):
  assert config_files.read_config(workdir).mesh.spatial == 2
  found = []
  for devices in (1, 2, 8):
    mesh = jax.make_mesh(
      (devices, 1), ('data', 'spatial'), devices=jax.devices()[:devices]
    )
    run(workdir, scans, tmp_path / f'{devices}', mesh=mesh)
    found.append(masks(tmp_path / f'{devices}'))
  assert len(found[0]) == 3 and found[0] == found[1] == found[2]


def test_sigmoid_outputs_have_sigmoid_probabilities(tmp_path):
  config = shrink(load('unet'))
  config.loss.update(cross_entropy=0.0, dice_loss=0.0, sigmoid_dice_loss=1.0)
  write_untrained(config, tmp_path)
  model = medseg_jax.load_model(tmp_path / 'model')
  image = np.random.default_rng(0).normal(0, 100, (16, 16)).astype(np.float32)
  label, probs, *_ = model.predict(image)
  # One tile, so that nothing but the network comes between.
  config = model_folder.config_of(model.description)
  settings = trained_model.prediction_settings(config, sharding.local_mesh())
  case = Case('image', image[..., None], None, (1.0, 1.0))
  tile = preprocess(case, settings['preprocessing']).image.astype(np.float16)
  batch = np.stack([tile] * settings['batch_size'])
  predictor = trained_model.load_predictor(config, tmp_path)
  logits = np.asarray(predictor.predict_fn(batch), np.float64)[0, ..., 1:]
  expected = 1 / (1 + np.exp(-logits))
  assert probs.shape == (16, 16, 4)
  np.testing.assert_allclose(probs[..., 1:], expected, atol=2e-3)
  np.testing.assert_allclose(probs[..., 0], 1 - expected.max(-1), atol=2e-3)
  first, second = np.sort(probs, -1)[..., :-3:-1].transpose(2, 0, 1)
  sure = first - second > 4e-3  # where half precision cannot make a tie
  np.testing.assert_array_equal(probs.argmax(-1)[sure], label[sure])
  assert len(np.unique(label)) > 1


def test_outside_the_crop_of_a_sigmoid_network_is_background():
  image = np.zeros((12, 10, 1), np.float32)
  image[2:9, 1:8] = 1
  image[4:6, 3:6] = 2

  def network(tiles):
    logits = jax.numpy.concatenate([0 * tiles, tiles - 0.5, tiles - 1.5], -1)
    return logits * 20

  [(_, label, probs, *_)] = predict_cases_of_library(
    network,
    [Case('nested', image, None, (1.0, 1.0))],
    preprocessing=Preprocessing(channels=(Channel('none'),), crop=True),
    channels=1,
    patch_size=(8, 8),
    overlap=0.5,
    batch_size=1,
    probabilities=True,
    activate=decoding.sigmoid_of_classes,
    has_background=True,
  )
  inside, middle = image[..., 0] > 0, image[..., 0] > 1
  expected = np.stack([~inside, inside, middle], -1)
  np.testing.assert_allclose(probs, expected, atol=1e-3)
  assert set(np.unique(label)) <= {0, 1, 2} and (label[~inside] == 0).all()
