"""`report.html` in a real browser: what moves and toggles, and asks nobody."""

import numpy as np
import pytest
from browser import browsing
from html_cases import page_of, picture, volume

# The pixels of a plane, as a number that changes with any of them.
PIXELS = """(i) => {
  const canvas = document.querySelectorAll('figure.slices canvas')[i];
  const context = canvas.getContext('2d');
  const of = context.getImageData(0, 0, canvas.width, canvas.height);
  return of.data.reduce((sum, value, k) => (sum * 31 + value) % 1000003, 7);
}"""


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  with browsing(tmp_path_factory.mktemp('browser')) as found:
    yield found


@pytest.fixture(scope='module')
def volumes(tmp_path_factory):
  cases = {f'case {i}': volume(i) for i in range(11)}
  image, label, pred = volume(20)
  cases['empty'] = image, label, np.zeros_like(pred)
  path = tmp_path_factory.mktemp('volumes') / 'report.html'
  path.write_text(page_of(cases)[0], 'utf-8')
  return path


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  cases = {f'image {i}': picture(i, channels=3) for i in range(2)}
  path = tmp_path_factory.mktemp('images') / 'report.html'
  path.write_text(page_of(cases)[0], 'utf-8')
  return path


def fresh(page, path):
  page.look()
  page.complaints.clear()
  page.requests.clear()
  page.open(path)


def is_quiet(page, path):
  assert page.complaints == []
  assert page.requests == [path.as_uri()]


def open_case(page, index):
  page.run(f'open({index})')
  page.wait('document.getElementById("case").dataset.ready')


def pixels(page):
  return [page.run(f'({PIXELS})({i})') for i in range(3)]


def names(page):
  return page.run(
    '[...document.querySelectorAll("#cases tbody tr")]'
    '.filter((row) => !row.hidden).map((row) => row.cells[0].innerText)'
  )


def middle(page, selector):
  return page.run(
    f'(() => {{ const e = document.querySelector({selector!r});'
    'e.scrollIntoView({block: "center"}); const b = e.getBoundingClientRect();'
    'return [b.x + b.width / 2, b.y + b.height / 2]; })()'
  )


def click(page, selector):
  x, y = middle(page, selector)
  more = dict(button='left', clickCount=1)
  page.mouse('mousePressed', x, y, buttons=1, **more)
  page.mouse('mouseReleased', x, y, **more)


def test_the_table_sorts_and_filters(page, volumes):
  fresh(page, volumes)
  first = names(page)
  assert first[0] == 'empty' and len(first) == 12  # the lowest Dice
  click(page, '#cases th button')
  ordered = [*(f'case {i}' for i in range(11)), 'empty']
  assert names(page) == ordered  # 10 after 9
  assert page.run('document.querySelector("#cases th").ariaSort') == 'ascending'
  click(page, '#cases th button')
  assert names(page) == ordered[::-1]
  click(page, '#odd')
  assert names(page) == ['empty']
  click(page, '#odd')
  click(page, '#name')
  for letter in 'E 1':
    page.press(letter, text=letter)
  assert names(page) == ['case 10', 'case 1']
  assert page.run('document.getElementById("count").innerText') == (
    '2 of 12 shown'
  )
  is_quiet(page, volumes)


def test_slices_scroll_with_wheel_keys_and_slider(page, volumes):
  fresh(page, volumes)
  click(page, '#cases tbody tr:nth-child(3) button')
  page.wait('document.getElementById("case").dataset.ready')
  x, y = middle(page, 'figure.slices canvas')
  before, place = pixels(page), page.run('viewer.at')
  page.mouse('mouseWheel', x, y, deltaX=0, deltaY=100)
  page.wait(f'viewer.at[0] === {place[0] - 1}')
  after = pixels(page)
  assert after[0] != before[0]
  label = 'document.querySelector("figure.slices .place").innerText'
  origin = page.run('viewer.volume.origin[0]')
  assert page.run(label) == f'slice {origin + place[0]} of 12'
  page.run('document.querySelector("figure.slices canvas").focus()')
  page.press('ArrowUp', 38)
  page.press('ArrowUp', 38)
  assert page.run('viewer.at[0]') == place[0] + 1
  page.run('document.querySelectorAll("figure.slices input")[1].focus()')
  page.press('ArrowRight', 39)
  assert page.run('viewer.at[1]') == place[1] + 1
  x, y = middle(page, 'figure.slices canvas')
  page.run('document.getElementById("drag").focus()')
  more = dict(button='left', clickCount=1)
  page.mouse('mousePressed', x + 30, y + 20, buttons=1, **more)
  page.mouse('mouseReleased', x + 30, y + 20, **more)
  assert page.run('viewer.at[2]') != place[2]
  is_quiet(page, volumes)


def test_overlays_and_window_change_pixels(page, volumes):
  fresh(page, volumes)
  open_case(page, 2)
  first = before = pixels(page)
  for box in ('#truth', '#prediction', '#errors', '#picture'):
    click(page, box)
    now = pixels(page)
    assert all(a != b for a, b in zip(now, before, strict=True)), box
    before = now
  for box in ('#truth', '#prediction', '#errors', '#picture'):
    click(page, box)
  assert pixels(page) == first
  click(page, '#classes input')
  assert all(a != b for a, b in zip(pixels(page), first, strict=True))
  click(page, '#classes input')
  assert pixels(page) == first
  x, y = middle(page, 'figure.slices canvas')
  width = page.run('viewer.width')
  page.mouse('mousePressed', x, y, button='left', buttons=1, clickCount=1)
  page.mouse('mouseMoved', x - 60, y + 10, button='left', buttons=1)
  page.mouse('mouseReleased', x - 60, y + 10, button='left', clickCount=1)
  assert page.run('viewer.width') == width - 60
  assert (
    page.run('Number(document.getElementById("width").value)') == width - 60
  )
  assert pixels(page) != first
  is_quiet(page, volumes)


def test_errors_are_coloured_by_their_kind(page, volumes):
  fresh(page, volumes)
  open_case(page, 1)
  _, label, pred = volume(1)
  for box in ('#prediction', '#errors', '#picture'):
    click(page, box)
  page.run("document.getElementById('prediction').checked = false; arrange()")
  [z, oz, oy, ox], [_, rows, columns] = page.run(
    '[[viewer.at[0], ...viewer.volume.origin], viewer.volume.shape]'
  )
  raw = page.run("""(() => { const c = document.querySelector('canvas');
    const of = c.getContext('2d').getImageData(0, 0, c.width, c.height);
    return [...of.data]; })()
  """)
  shown = np.array(raw).reshape(rows, columns, 4)[..., :3].astype(int)
  true = label[z + oz, oy : oy + rows, ox : ox + columns]
  made = pred[z + oz, oy : oy + rows, ox : ox + columns]
  kinds = {
    (230, 80, 0): (true > 0) & (made == 0),
    (86, 180, 233): (true == 0) & (made > 0),
    (240, 228, 66): (true > 0) & (made > 0) & (true != made),
  }
  cross = np.zeros(true.shape, bool)
  cross[page.run('viewer.at[1]')] = cross[:, page.run('viewer.at[2]')] = True
  plain = np.abs(shown - 90).max(-1) == 0
  assert (plain | cross)[true == made].all()
  for colour, where in kinds.items():
    assert where.any()
    expected = 90 * 0.25 + 0.75 * np.array(colour)
    assert np.abs(shown[where & ~cross] - expected).max() <= 1


def test_points_open_their_case_by_mouse_and_keyboard(page, volumes):
  fresh(page, volumes)
  # The last one lies over the others.
  name = page.run("""data.cases[Number(
    document.querySelector('.chart .case:last-of-type').dataset.case)].name""")
  click(page, '.chart .case:last-of-type')
  page.wait('document.getElementById("case").dataset.ready')
  assert page.run('document.getElementById("case-name").innerText') == name
  page.press('Escape', 27)
  assert not page.run('document.getElementById("case").open')
  page.run('document.querySelector(\'.chart .case[tabindex="0"]\').focus()')
  page.press('ArrowRight', 39)
  page.press('Enter', 13)
  page.wait('document.getElementById("case").open')
  order = page.run("""[...document.querySelector('.chart svg')
    .querySelectorAll('.case')].sort((a, b) => a.getAttribute('cx') -
    b.getAttribute('cx')).map((p) => data.cases[p.dataset.case].name)""")
  shown = page.run('document.getElementById("case-name").innerText')
  assert shown == order[1]
  click(page, '#next')
  table = names(page)
  following = table[(table.index(shown) + 1) % len(table)]
  assert page.run('document.getElementById("case-name").innerText') == following
  is_quiet(page, volumes)


def test_images_zoom_and_move(page, images):
  fresh(page, images)
  open_case(page, 0)
  assert page.run(
    '[...document.querySelectorAll("figure.slices")].map((f) => f.hidden)'
  ) == [False, True, True]
  shape = (
    "document.querySelector('figure.slices canvas').getBoundingClientRect()"
  )
  before = page.run(f'{shape}.width')
  x, y = middle(page, 'figure.slices canvas')
  page.mouse('mouseWheel', x, y, deltaX=0, deltaY=-400)
  page.wait(f'{shape}.width > {2 * before}')
  left = page.run(f'{shape}.left')
  page.mouse('mousePressed', x, y, button='left', buttons=1, clickCount=1)
  page.mouse('mouseMoved', x + 50, y, button='left', buttons=1)
  page.mouse('mouseReleased', x + 50, y, button='left', clickCount=1)
  assert page.run(f'{shape}.left') == pytest.approx(left + 50, abs=1)
  click(page, '#fit')
  assert page.run(f'{shape}.width') == pytest.approx(before)
  # In colour: red and blue of the picture differ.
  red, blue = page.run("""(() => { const c = document.querySelector('canvas');
    const d = c.getContext('2d').getImageData(0, 0, 8, 8).data;
    return [d[0], d[2]]; })()""")
  assert abs(red - blue) > 100
  is_quiet(page, images)


@pytest.mark.parametrize('dark', [False, True])
def test_a_phone_shows_it_without_moving_sideways(page, volumes, dark):
  fresh(page, volumes)
  page.look(width=390, height=844, dark=dark)
  assert page.run('document.documentElement.scrollWidth') == 390
  paper = page.run('getComputedStyle(document.body).backgroundColor')
  assert (paper == 'rgb(255, 255, 255)') is not dark
  open_case(page, 0)
  assert page.run('document.getElementById("case").scrollWidth') <= 390
  assert (
    page.run("""[...document.querySelectorAll('input, select, button')]
    .filter((e) => !(e.labels?.length || e.innerText || e.ariaLabel))
    .map((e) => e.outerHTML)""")
    == []
  )
  is_quiet(page, volumes)
