"""Oxford-IIIT Pet by the command of its page, out of TFDS's own builder.

Only the download is not there: the archives are folders of a few made-up images
with trimaps, laid out as the archives are.
"""
# ruff: noqa: E402

import csv
import json
import shlex

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

tfds = pytest.importorskip('tensorflow_datasets')

from medseg_jax import main
from medseg_jax.data.sources.tfds import open_tfds

PET, BACKGROUND, BORDER = 1, 2, 3  # in the trimaps, as their README says
NUMBERS = {'trainval': range(10), 'test': range(10, 13)}


def trimap(number):
  """Returns a disc, uint8 `[H, W]`; sizes differ."""
  size = (40 + number % 3, 44)
  grid = np.indices(size) - np.reshape([18 + number % 4, 22], (2, 1, 1))
  far = np.hypot(*grid)
  mask = np.full(size, BACKGROUND, np.uint8)
  mask[far < 13] = BORDER
  mask[far < 10] = PET
  return mask


def write_archives(root):
  """Writes what `images.tar.gz` and `annotations.tar.gz` hold."""
  images, annotations = root / 'images' / 'images', root / 'a' / 'annotations'
  images.mkdir(parents=True)
  (annotations / 'trimaps').mkdir(parents=True)
  brightness = np.array([0, 220, 30, 120])
  for part, numbers in NUMBERS.items():
    lines = []
    for i in numbers:
      name, mask = f'Bombay_{i}', trimap(i)
      image = brightness[mask][..., None] + [0, 10, 20]
      path = images / f'{name}.jpg'
      Image.fromarray(image.astype(np.uint8)).save(path, quality=95)
      Image.fromarray(mask).save(annotations / 'trimaps' / f'{name}.png')
      lines.append(f'{name} 8 1 2\n')
    (annotations / f'{part}.txt').write_text(''.join(lines))
  return {'images': str(images.parent), 'annotations': str(annotations.parent)}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Returns the folder of the data set, prepared by TFDS's own builder."""
  root = tmp_path_factory.mktemp('pets')
  archives = write_archives(root / 'archives')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      tfds.download.DownloadManager,
      'download_and_extract',
      lambda self, urls: archives,
    )
    builder = tfds.builder('oxford_iiit_pet', data_dir=root / 'tfds')
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
  return str(root / 'tfds')


def command_of_page():
  """Returns the words of the command that the page on TFDS has one type."""
  page = (ROOT / 'docs' / 'how-to' / 'tfds.md').read_text()
  block = page.split('```sh\n')[1].split('```')[0]
  python, _, module, *words = shlex.split(block.replace('\\\n', ''))
  assert (python, module) == ('python', 'medseg_jax.main')
  return [word for word in words if not word.startswith('--workdir')]


def test_the_page_trains_and_predicts_in_the_values_of_the_set(
  data_dir, tmp_path, monkeypatch, capsys
):
  run, masks = tmp_path / 'run', tmp_path / 'masks'
  monkeypatch.chdir(ROOT)

  def call(*words):
    monkeypatch.setattr('sys.argv', ['main', f'--workdir={run}', *words])
    assert main.main() == 0
    return capsys.readouterr().out

  told = call(
    *command_of_page(),
    f'--config.data.tfds.data_dir={data_dir}',
    *('--config.num_steps=40', '--config.batch_size=8'),
    *('--config.patch_size=(32,32)', '--config.eval_every=0'),
    *('--config.model.depth=2', '--config.model.features=8'),
  )
  assert 'classes   background (2), pet (1), border (3)' in told
  folder = run / 'evaluation' / 'test'
  summary = json.loads((folder / 'summary.json').read_text())
  assert list(summary['classes']) == ['background', 'pet', 'border']
  assert summary['num_cases'] == 3
  # What counts as which class is what the trimaps have of it.
  with open(folder / 'cases.csv', newline='') as file:
    found = {
      (row['case'], row['class']): int(row['tp']) + int(row['fn'])
      for row in csv.DictReader(file)
    }
  assert found == {
    (f'Bombay_{i}', name): int((trimap(i) == value).sum())
    for i in NUMBERS['test']
    for value, name in (
      (BACKGROUND, 'background'), (PET, 'pet'), (BORDER, 'border')
    )
  }  # fmt: skip
  scores = {k: v['dice'] for k, v in summary['classes'].items()}
  assert min(scores.values()) > 0.7, scores
  # A mask is written in the values of the data set.
  images = tmp_path / 'images'
  images.mkdir()
  for case in open_tfds('oxford_iiit_pet', data_dir=data_dir)['test']:
    Image.fromarray(case.image).save(images / f'{case.name}.png')
  call('--mode=predict', f'--input={images}', f'--output={masks}')
  for i in NUMBERS['test']:
    mask = np.asarray(Image.open(masks / f'Bombay_{i}.png'))
    assert (mask == trimap(i)).mean() > 0.8


def test_without_the_keys_of_the_page_the_first_value_is_the_background(
  data_dir,
):
  source = open_tfds('oxford_iiit_pet', data_dir=data_dir)['train']
  assert source.label_values == (PET, BACKGROUND, BORDER)
  assert source.classes == ('background', 'class_1', 'class_2')
  assert set(source.names) == {f'Bombay_{i}' for i in NUMBERS['trainval']}
