"""`report.html`: what it holds is what was scored, and it stays small."""

import csv
import html.parser
import json
import re

import numpy as np
import pytest
from html_cases import CLASSES, data_of, page_of, picture, unpacked, volume
from PIL import Image

from medseg_jax.report.html import case_views, mosaic
from medseg_jax.report.html.case_warnings import warnings_of
from medseg_jax.report.unlike_training import Range, Training


class Cells(html.parser.HTMLParser):
  """The texts of cells, row by row, and of list items."""

  def __init__(self):
    super().__init__()
    self.rows, self.lists, self.inside = [], [], ''

  def handle_starttag(self, tag, attrs):
    for name, value in attrs:
      if name in ('src', 'href'):
        assert (value or '').startswith(('#', 'data:')), value
    if tag == 'tr':
      self.rows.append([])
    elif tag in ('td', 'th') and self.rows:
      self.rows[-1].append('')
    elif tag == 'li':
      self.lists.append('')
    self.inside = tag

  def handle_data(self, text):
    in_cell = self.inside in ('td', 'th', 'button', 'small')
    if in_cell and self.rows and self.rows[-1]:
      self.rows[-1][-1] += text.strip() + ' '
    if self.lists:
      self.lists[-1] += text


@pytest.fixture(scope='module')
def scored():
  cases = {f'case {i}': volume(i) for i in range(4)}
  image, label, pred = volume(9)
  cases['empty <b>'] = image, label, np.zeros_like(pred)
  return page_of(
    cases,
    failed={'gone & lost': 'no such file <x>'},
    train=[(i, {'loss': 1 / i, 'learning_rate': 0.1}) for i in (1, 2, 3)],
    val=[(3, {'dice': None}), (4, {'dice': 0.5})],
  )


def test_the_numbers_are_those_of_the_summary(scored):
  page, summary, records = scored
  data = data_of(page)
  assert data['summary'] == json.loads(json.dumps(summary))
  cells = Cells()
  cells.feed(page)
  by_name = {row[0].strip(): row for row in cells.rows if row}
  for name in CLASSES:
    of = summary['classes'][name]
    dice, low, high = re.findall(r'[\d.]+', by_name[name][1])
    assert float(dice) == pytest.approx(of['dice'], abs=5e-4)
    assert [float(low), float(high)] == pytest.approx(of['dice_ci95'], abs=5e-4)
  mean = by_name['foreground mean']
  assert float(mean[1].split()[0]) == pytest.approx(
    summary['mean']['dice'], abs=5e-4
  )
  for case, record in zip(data['cases'], records, strict=True):
    assert case['name'] == record['case']
    for name, scores in record['classes'].items():
      for key, value in scores.items():
        own = case['scores'][name][key]
        assert own == value if np.isfinite(value) else own is None
    row = by_name[case['name']]
    foreground = [record['classes'][name]['dice'] for name in CLASSES[1:]]
    assert float(row[1]) == pytest.approx(np.mean(foreground), abs=5e-4)


def test_what_is_wrong_is_told_first_and_nothing_is_html(scored):
  page, _, _ = scored
  cells = Cells()
  cells.feed(page)
  told = ' '.join(cells.lists)
  assert 'gone & lost could not be scored' in told and '<x>' in told
  assert 'liver </script>: nothing predicted of' in told
  assert '<b>gone' in page and 'empty <b>' not in page
  assert page.index('could not be scored') < page.index('id="cases"')
  assert "default-src 'none'" in page
  titles = re.findall(r'<svg[^>]* aria-label="([^"]*)"', page)
  assert titles[:3] == ['Loss', 'Learning rate', 'Validation Dice']
  # Each case is a point in each chart of scores that it has.
  points = [
    svg.count('class="case"')
    for svg in re.findall(r'<svg.*?</svg>', page, re.S)
  ]
  assert points[3:] == [10, 8, 8, 10, 5, 5, 5, 5]


def test_masks_are_shown_voxel_for_voxel():
  image, label, pred = volume(3)
  label = label.copy()
  label[0, 0, :3] = -1
  view = case_views.view_of(image, label, pred, (2.0, 1.0, 1.0))
  box = tuple(
    slice(start, start + size)
    for start, size in zip(view['origin'], view['shape'], strict=True)
  )
  masks = unpacked(view['masks'], view['shape'], view['columns'])
  shown = np.where(label < 0, case_views.IGNORED, label)
  np.testing.assert_array_equal(masks[..., 0], shown[box])
  np.testing.assert_array_equal(masks[..., 1], pred[box])
  # All that differs is in what is shown.
  assert (label[box] != pred[box]).sum() >= (
    (label != pred) & (label >= 0)
  ).sum()
  assert view['full'] == [12, 16, 20] and view['spacing'] == [2.0, 1.0, 1.0]
  low, high = view['window']
  expected = ((image[box][..., 0] - low) / (high - low)).clip(0, 1) * 255
  grey = unpacked(view['image'], view['shape'], view['columns'])
  assert np.abs(grey - expected).mean() < 8  # as JPEG has it


def test_images_keep_their_colours_and_masks_alone_have_a_view():
  image, label, pred = picture(1, channels=3)
  view = case_views.view_of(image, label, pred, (1.0, 1.0))
  assert view['rank'] == 2 and view['shape'] == [1, 40, 50]
  assert view['window'] == [0.0, 255.0]
  shown = unpacked(view['image'], view['shape'], view['columns'])[0]
  for index in range(3):  # JPEG keeps the colour of areas
    where = label == index
    own, true = shown[where].mean(axis=0), image[where].mean(axis=0)
    np.testing.assert_allclose(own, true, atol=5)
  alone = case_views.view_of(None, label, pred, (1.0, 1.0))
  assert alone['image'] is None and alone['masks'] == view['masks']
  with pytest.raises(ValueError, match='255'):
    case_views.view_of(None, label + 255, pred, (1.0, 1.0))


@pytest.mark.parametrize('shape', [(60, 90, 80), (700, 1300)])
def test_a_case_stays_within_its_budget_and_small_things_stay(shape):
  rng = np.random.default_rng(0)
  image = rng.normal(0, 1, (*shape, 1))  # noise is the worst to pack
  label = np.zeros(shape, int)
  label[tuple(n // 2 for n in shape)] = 1
  label[(1,) * len(shape)] = label[tuple(n - 1 for n in shape)] = 2
  view = case_views.view_of(image, label, label, (1,) * len(shape), budget=9000)
  assert (len(view['image']) + len(view['masks'])) * 3 / 4 <= 9100
  masks = unpacked(view['masks'], view['shape'], view['columns'])
  assert set(np.unique(masks[..., 0])) == {0, 1, 2}
  blocks = [s * n for s, n in zip(view['steps'], view['shape'], strict=True)]
  extent = view['full'][-len(shape) :]
  assert all(a >= b for a, b in zip(blocks[-len(shape) :], extent, strict=True))


def test_blocks_are_means_and_largest():
  rng = np.random.default_rng(0)
  image, label = rng.normal(size=(7, 5, 6, 2)), rng.integers(-1, 5, (7, 5, 6))
  steps = (3, 2, 4)
  means = mosaic.mean_in_blocks(image, steps)
  most = mosaic.largest_in_blocks(label, steps)
  assert means.shape == (3, 3, 2, 2) and most.shape == (3, 3, 2)
  for at in np.ndindex(3, 3, 2):
    box = tuple(slice(i * s, i * s + s) for i, s in zip(at, steps, strict=True))
    np.testing.assert_allclose(
      means[at], image[box].mean(axis=(0, 1, 2)), rtol=1e-5, atol=1e-6
    )
    assert most[at] == label[box].max()


def test_where_there_is_no_room_the_worst_keep_their_pictures(monkeypatch):
  found = {
    name: {'facts': name, 'view': {'image': 'x' * 60, 'masks': 'y' * 40}}
    for name in 'abc'
  }
  monkeypatch.setattr(case_views, 'ALL_BYTES', 150)  # 200 as text
  kept = case_views.within_limit(found, ['c', 'a', 'b'])
  assert [name for name, of in kept.items() if of['view']] == ['a', 'c']
  assert kept['b']['facts'] == 'b' and found['b']['view']


def test_a_case_that_cannot_be_shown_costs_nothing_else():
  views = case_views.CaseViews(2)
  image, label, pred = volume(0)
  views.add('bad', image[:3], label, pred, (1.0, 1.0, 1.0))
  views.add('good', image, label, pred, (1.0, 1.0, 1.0))
  assert list(views.found) == ['good'] and views.reason.startswith('bad: ')


def test_cases_far_from_the_training_are_told():
  record = {'classes': {'background': {}, 'a': dict(tp=0, fp=0, fn=0)}}
  training = Training([Range('CT', -100.0, 200.0)], (1.0, 1.0), (100.0, 90.0))

  def lines(medians=(50.0,), spacing=(1.0, 1.0), shape=(100, 90)):
    facts = dict(medians=medians, spacing=spacing, extent=shape)
    return warnings_of(record, facts, training, unit='ml')

  assert lines() == []
  [line] = lines(medians=(300.0,))
  assert 'intensity of CT in the foreground 300, there -100 to 200' in line
  spacing, size = lines(spacing=(1.0, 2.5))
  assert 'spacing 2.5 × 1 mm, there 1 × 1' in spacing
  assert 'size 225 × 100 mm' in size
  assert lines(spacing=(0.9, 1.9), shape=(100, 60)) == []
  assert warnings_of(record, None, training, unit='ml') == []


def test_the_program_writes_the_page_beside_the_numbers(tmp_path, monkeypatch):
  from medseg_jax import main

  for folder in ('made', 'true'):
    (tmp_path / folder).mkdir()
  for i in range(3):
    _, label, pred = picture(i)
    for folder, mask in (('made', pred), ('true', label)):
      image = Image.fromarray((mask * 100).astype(np.uint8))
      image.save(tmp_path / folder / f'{i}.png')
  words = [
    *('medseg_jax/main.py', '--mode=score', f'--output={tmp_path / "out"}'),
    *(f'--predictions={tmp_path / "made"}', f'--labels={tmp_path / "true"}'),
  ]
  monkeypatch.setattr('sys.argv', words)
  assert main.main() == 0
  page = (tmp_path / 'out' / 'report.html').read_text('utf-8')
  data = data_of(page)
  summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  assert data['summary'] == summary
  with open(tmp_path / 'out' / 'cases.csv') as file:
    rows = {(r['case'], r['class']): r for r in csv.DictReader(file)}
  for case in data['cases']:
    for name, scores in case['scores'].items():
      assert float(rows[case['name'], name]['dice']) == scores['dice']
    assert case['view']['image'] is None
  assert 'python -m medseg_jax.main --mode=score' in page
