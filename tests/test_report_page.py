"""The report's page: what it shows is what it was given, from itself alone."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from browser import browsing
from PIL import Image
from scipy import sparse
from test_measurements import AFFINE, blobs

from medseg_jax.clinic import codes, measurements, numbers, page, viewer

CLASSES = ('background', 'liver </script>', 'lesion "1" & more')


def made(label, *, shape=None):
  rng = np.random.default_rng(0)
  image = rng.normal(100, 20, (*label.shape, 2)) + 50 * (label > 0)[..., None]
  meanings = codes.meanings(CLASSES)
  data = viewer.data_of(
    label,
    image,
    AFFINE,
    classes=CLASSES[1:],
    colours=[meaning.colour for meaning in meanings],
    members=[(1,), (2,)],
  )
  report = numbers.to_json(
    '<b>case</b>',
    [
      numbers.Structure(
        meaning,
        measurements.measure(
          label, image, AFFINE, indices=(i + 1,), lesions=meaning.lesion
        ),
        (1.0, 2.0) if i else (),
      )
      for i, meaning in enumerate(meanings)
    ],
    channels=('t1', 't2'),
    coverage=0.9,
    about={
      'model': {'name': 'm', 'version': '1'},
      'image': {
        'shape': list(label.shape),
        'spacing_mm': [1.0, 1.0, 1.0],
        'channels': ['t1', 't2'],
      },
    },
  )
  text = page.write_page(
    report, data, colours={meaning.name: meaning.colour for meaning in meanings}
  )
  return text, data, image


def unpacked(source, shape, columns):
  head, content = source.split(',')
  assert head in ('data:image/png;base64', 'data:image/jpeg;base64')
  picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
  depth, rows, wide = shape
  tiles = [
    picture[
      z // columns * rows : (z // columns + 1) * rows,
      z % columns * wide : (z % columns + 1) * wide,
    ]
    for z in range(depth)
  ]
  return np.stack(tiles)


class Reader(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.texts, self.inside = {}, []

  def handle_starttag(self, tag, attrs):
    self.inside.append(tag)
    for _, value in attrs:
      assert not re.match('https?:|//', value or '')

  def handle_endtag(self, tag):
    while self.inside and self.inside.pop() != tag:
      pass

  def handle_data(self, data):
    for tag in self.inside:
      self.texts.setdefault(tag, []).append(data)


def test_the_page_holds_the_image_the_mask_and_the_table():
  label = blobs()
  label[6:] *= 2
  text, data, image = made(label)
  assert '@@' not in text
  assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?(https?:)?//', text)
  assert not re.search(r'fetch\(|XMLHttpRequest|WebSocket|import\(', text)
  reader = Reader()
  reader.feed(text)
  [inner] = [t for t in reader.texts['script'] if t.startswith('{')]
  assert json.loads(inner) == json.loads(json.dumps(data))
  cells = reader.texts['td']
  assert CLASSES[1] in cells and CLASSES[2] in cells
  assert reader.texts['h1'] == ['Segmentation of <b>case</b>']
  assert reader.texts['p'][0] == numbers.WARNING
  shown = unpacked(data['mask'], data['shape'], data['columns'])
  np.testing.assert_array_equal(shown, label)
  assert len(data['images']) == 2
  for i, packed in enumerate(data['images']):
    grey = unpacked(packed['src'], data['shape'], data['columns'])
    low, high = packed['window']
    expected = ((image[..., i] - low) / (high - low)).clip(0, 1) * 255
    assert np.abs(grey - expected).mean() < 6  # as JPEG has it


def test_large_images_are_thinned_out_and_small_lesions_stay():
  label = np.zeros((5, 600, 300), np.int16)
  label[1, 301:303, 150], label[4, 0, 0] = 1, 2
  _, data, _ = made(label)
  assert data['steps'] == [1, 3, 2] and data['shape'] == [5, 200, 150]
  assert data['full'] == [5, 600, 300]
  shown = unpacked(data['mask'], data['shape'], data['columns'])
  assert (
    shown[1, 100, 75] == 1 and shown[4, 0, 0] == 2 and (shown > 0).sum() == 2
  )
  assert data['start'] == [1, 0, 0] or data['start'] == [1, 100, 75]
  # A place in the patient is found again in what is shown.
  right, anterior, superior, _ = AFFINE @ [1, 302, 150, 1]
  voxel = np.array(data['to_voxel']) @ [-right, -anterior, superior, 1]
  assert np.rint(voxel).astype(int).tolist() == [1, 100, 75]


def test_surfaces_lie_where_the_mask_does():
  label = np.zeros((8, 180, 40), np.int16)
  label[2:6, 5:175, 10:30] = 1
  _, data, _ = made(label)
  first, second = data['surfaces']
  assert second == {'vertices': '', 'faces': ''}
  packed = np.frombuffer(base64.b64decode(first['vertices']), '<i2')
  faces = np.frombuffer(base64.b64decode(first['faces']), '<u4').reshape(-1, 3)
  vertices = packed.reshape(-1, 3) / 32767 * data['reach'] + data['centre']
  a, b, c = vertices[faces].transpose(1, 0, 2)
  volume = np.einsum('ij,ij->i', a, np.cross(b, c)).sum() / 6
  true = (label == 1).sum() * abs(np.linalg.det(AFFINE[:3, :3]))
  assert volume == pytest.approx(true, rel=0.05)
  corners = np.argwhere(label) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
  middle = corners.mean(0) * [-1, -1, 1]
  np.testing.assert_allclose(
    (vertices.min(0) + vertices.max(0)) / 2, middle, atol=3
  )


def test_small_pieces_beside_a_large_one_are_drawn():
  label = np.zeros((40, 300, 300), np.int16)
  label[5:30, 20:150, 20:150] = 2
  for i in range(4):
    label[10, 170 + 30 * i, 200 + 20 * i :][:2] = 2
  _, data, _ = made(label)
  _, second = data['surfaces']
  faces = np.frombuffer(base64.b64decode(second['faces']), '<u4').reshape(-1, 3)
  pairs = np.concatenate([faces[:, :2], faces[:, 1:]]).astype(int)
  size = int(faces.max()) + 1
  ones = np.ones(len(pairs))
  graph = sparse.coo_array((ones, tuple(pairs.T)), shape=(size, size))
  assert sparse.csgraph.connected_components(graph, directed=False)[0] == 5


def test_very_many_lesions_are_told_by_the_largest():
  label = np.zeros((20, 20, 8), np.int16)
  label[::4, ::2, ::2] = 2
  text, *_ = made(label)
  assert '200 lesions' in text and 'the 100 largest are shown' in text
  assert text.count('<tr class="lesion"') == 100


def test_an_empty_mask_has_a_page():
  text, data, _ = made(np.zeros((4, 5, 6), np.int16))
  assert data['surfaces'] == [] and data['start'] == [2, 2, 3]
  assert '0 lesions' in text and 'Not found: liver' in text


def test_in_a_browser_slices_move_and_the_mask_can_be_hidden(tmp_path):
  label = blobs()
  label[6:] *= 2
  text, data, _ = made(label)
  path = tmp_path / 'report.html'
  path.write_text(text, 'utf-8')
  pixels = """[...document.querySelectorAll('figure.slices canvas')].map((c) =>
    c.getContext('2d').getImageData(0, 0, c.width, c.height).data.reduce(
      (sum, value) => (sum * 31 + value) % 1000003, 7))"""
  with browsing(tmp_path) as tab:
    tab.look(height=1400)
    tab.open(path)
    first = tab.run(pixels)
    tab.run("document.getElementById('masks').click()")
    assert all(a != b for a, b in zip(tab.run(pixels), first, strict=True))
    tab.run("document.getElementById('masks').click()")
    assert tab.run(pixels) == first
    x, y = tab.run("""(() => {
      const box = document.querySelector('canvas').getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2]; })()""")
    tab.mouse('mouseWheel', x, y, deltaX=0, deltaY=100)
    tab.wait(f'viewer.at[0] === {data["start"][0] - 1}')
    assert tab.run(pixels)[0] != first[0]
    tab.run("document.querySelector('tr[data-at]').click()")
    at = tab.run('viewer.at')
    place = tab.run("document.querySelector('tr[data-at]').dataset.at")
    voxel = np.array(data['to_voxel']) @ [*map(float, place.split()), 1]
    assert np.abs(voxel - at).max() <= 0.51
    tab.run("document.querySelectorAll('input[data-class]')[0].click()")
    assert tab.run('shown') == [False, True]
    assert tab.complaints == [] and tab.requests == [path.as_uri()]
