"""Archives that refuse, are silent or say half."""

import base64
import json
import sys
import threading
import time

import pydicom
import pytest
from data_cases import assert_one_line
from dicom_cases import change, slice_of, values, write
from ml_collections import ConfigDict
from pacs_cases import JSON, RTSTRUCT, SEG, node, service, silence

from medseg_jax.experiment import fetched_series
from medseg_jax.pacs import address, answers, store, web
from medseg_jax.runtime.errors import InputError


@pytest.fixture
def objects(tmp_path):
  """Returns files of two kinds of objects, which hold little else."""
  paths = []
  for i, kind in enumerate((SEG, RTSTRUCT)):
    dataset = slice_of(values()[0], (0, 0, i))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    paths.append(tmp_path / f'{i}.dcm')
    dataset.save_as(paths[-1], enforce_file_format=True)
  return paths


def test_what_a_node_refuses_is_named_with_its_status(objects):
  a, b = objects
  with node({SEG: 0xA700, RTSTRUCT: 0xB007}) as (to, asked):
    answers = [*store.send(to, objects)]
  assert answers == [
    (a, 'status 0xA700 (out of resources: disk 7 is full)', ''),
    (b, '', 'status 0xB007 (does not match its kind of object)'),
  ]
  assert asked == [SEG, RTSTRUCT]
  with node({}, classes=[RTSTRUCT]) as (to, asked):
    first, second = store.send(to, objects)
    assert first.refused.startswith('takes no Segmentation Storage')
    assert not second.refused and asked == [RTSTRUCT]
    with pytest.raises(InputError, match='no Segmentation Storage') as error:
      store.probe(to, [SEG, RTSTRUCT])
    assert_one_line(error, to.name)
    [only] = store.send(to, objects[:1])
    assert 'takes no Segmentation Storage' in only.refused


def test_nothing_waits_for_ever(objects, monkeypatch):
  monkeypatch.setattr(store, '_ANSWER', 0.3)
  monkeypatch.setattr(store, '_STORE', 0.3)
  monkeypatch.setattr(web, '_TIMES', (0.3, 0.3))
  with silence() as port:
    to = address.target(f'dicom://ARCHIVE@127.0.0.1:{port}')
    with pytest.raises(InputError, match='or not within 0.3 s') as error:
      store.probe(to, [SEG])
    assert_one_line(error, to.name)
    to = address.target(f'dicomweb://127.0.0.1:{port}')
    with pytest.raises(InputError, match='no answer within') as error:
      web.probe(to)
    assert_one_line(error, to.name)
    assert all('no answer within' in a.refused for a in web.send(to, objects))
  monkeypatch.setattr(store, '_ANSWER', 30)  # a busy machine may need them
  with node({SEG: 1.0}) as (to, _):
    first, second = store.send(to, objects)
  assert first.refused.startswith('no answer within 0.3')
  assert 'connection was ended' in second.refused
  # Also where what is sent is not even read.
  change(objects[0], PixelData=bytes(20_000_000))
  monkeypatch.setattr(store, '_SLOWEST', 1e9)
  deaf, begin = threading.Event(), time.monotonic()
  with node({}, deaf=deaf) as (to, _):
    [answer] = store.send(to, objects[:1])
    took = time.monotonic() - begin
    deaf.set()
  assert answer.refused.startswith('no answer within 0.32 s') and took < 15


def stored(uid, failed=None, warned=None):
  """Returns what a service says of an object, as JSON."""
  item = {'00081155': {'vr': 'UI', 'Value': [uid]}}
  tag = '00081199'
  if failed:
    tag, item['00081197'] = '00081198', {'vr': 'US', 'Value': [failed]}
  if warned:
    item['00081196'] = {'vr': 'US', 'Value': [warned]}
  return json.dumps({tag: {'vr': 'SQ', 'Value': [item]}}).encode()


def test_what_a_service_refuses_is_named_with_its_reason(objects):
  path = objects[0]
  uid = str(pydicom.dcmread(path).SOPInstanceUID)
  for status, kind, content, refused, note in (
    (200, JSON, stored(uid), '', ''),
    (200, f'{JSON}; charset=utf-8', stored(uid), '', ''),
    (202, JSON, stored(uid, warned=0xB000), '', 'some values were changed'),
    (202, JSON, stored(uid, failed=0x0122), '0x0122 (this kind of obj', ''),
    (409, JSON, stored(uid, failed=0xA900), '0xA900 (does not match', ''),
    (409, 'text/html', b'<p>no</p>', 'HTTP 409 Conflict', ''),
    (200, JSON, stored('1.2.3'), 'does not say that it is kept', ''),
    (200, 'text/plain', b'welcome', 'does not say that it is kept', ''),
    (200, JSON, b'{"0008', 'its answer makes no sense', ''),
    (403, JSON, b'', 'HTTP 403 Forbidden; MEDSEG_PACS_USER and', ''),
    (503, JSON, b'', 'HTTP 503 Service Unavailable', ''),
  ):
    with service(lambda *_, x=(status, kind, content): x) as (name, asked):
      [answer] = web.send(address.target(name), [path])
    assert [row[:2] for row in asked] == [('POST', '/root/studies')]
    assert answer.path == path
    assert (refused in answer.refused) and bool(refused) == bool(answer.refused)
    assert (note in answer.note) and bool(note) == bool(answer.note)
  assert answers.describe(0xC123) == 'status 0xC123 (cannot be understood)'
  assert answers.describe(0x0001) == 'status 0x0001'


def test_who_asks_is_told_to_the_service_alone(
  tmp_path, monkeypatch, capsys, caplog
):
  caplog.set_level('DEBUG')
  of_two = f'Basic {base64.b64encode(b"joe:secret").decode()}'
  netrc = tmp_path / 'netrc'
  netrc.write_text('machine 127.0.0.1 login ann password secret\n')
  of_file = f'Basic {base64.b64encode(b"ann:secret").decode()}'
  with service(lambda *_: (401, JSON, b'')) as (name, asked):
    for variables, expected in (
      ({}, None),
      ({'NETRC': str(netrc)}, of_file),
      ({web.USER: 'joe', web.PASSWORD: 'secret'}, of_two),
      ({web.TOKEN: 'secret'}, 'Bearer secret'),
    ):
      with monkeypatch.context() as patch:
        patch.setenv('NETRC', str(tmp_path / 'no file'))
        for key, value in variables.items():
          patch.setenv(key, value)
        with pytest.raises(InputError, match='401 Unauthorized') as error:
          web.probe(address.target(name))
        assert_one_line(error)
        assert 'secret' not in str(error.value)
      assert asked[-1][2] == expected
  monkeypatch.setenv(web.USER, 'joe')
  with pytest.raises(InputError, match='one is set') as error:
    web.connect(address.target(name))
  assert_one_line(error, web.PASSWORD)
  assert 'secret' not in ''.join([*capsys.readouterr(), caplog.text])


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('joe:secret@host:1', 'allowed are dicom://'),
    ('https://joe:secret@host', 'allowed are dicom://'),
    ('dicom://joe:secret@host:104', 'MEDSEG_PACS_USER'),
    ('dicomwebs://joe:secret@host/x', 'MEDSEG_PACS_USER'),
    ('dicomwebs://host/x?token=secret', 'nothing behind it'),
    ('dicom://host:104', 'CALLED@HOST:PORT'),
    ('dicom://A@B@C@host:104', 'CALLED@HOST:PORT'),
    ('dicom://A@host', 'CALLED@HOST:PORT'),
    ('dicom://A@host:70000', 'port from 1 to 65535'),
    ('dicom://A@[::1]:104', 'IPv4'),
    ('dicom://A_TITLE_OF_18_CHAR@host:104', 'up to 16 characters'),
    ('dicomweb://host/dicom-web/studies', 'root of the service'),
    ('dicomweb:///dicom-web', 'HOST'),
  ],
)
def test_addresses_that_are_none(text, words):
  with pytest.raises(InputError) as error:
    address.target(text)
  assert_one_line(error, words)
  assert 'secret' not in str(error.value)


def test_addresses():
  assert address.target('dicom://ARCHIVE@host:104') == address.Node(
    'ARCHIVE', 'MEDSEG_JAX', 'host', 104
  )
  found = address.target('dicom://ME%40X@AN%20ARCHIVE@10.0.0.1:4242')
  assert found == ('AN ARCHIVE', 'ME@X', '10.0.0.1', 4242)
  assert address.target('dicomwebs://host:8042/a/b/').url == (
    'https://host:8042/a/b'
  )
  found = address.source('dicomweb://host/root/studies/1.2/series/1.2.3')
  assert found.url == 'http://host/root'
  assert found.name == 'dicomweb://host/root'
  assert (found.study, found.series) == ('1.2', '1.2.3')
  allowed = 'dicomweb://HOST[:PORT][/ROOT]/studies/STUDY'
  for text, words in (
    ('dicomweb://host/root', allowed),
    ('https://host/studies/1.2', allowed),
    ('dicomweb://host/studies/1.2/instances/1', allowed),
    ('dicomweb://host/studies/1.2?Modality=CT', allowed),
    ('dicomweb://host/studies/1.2a', "'1.2a' is no UID"),
  ):
    with pytest.raises(InputError) as error:
      address.source(text)
    assert_one_line(error, words)


def test_half_a_series_is_none(tmp_path):
  paths = write(tmp_path / 'study', values())
  files = {str(pydicom.dcmread(path).SOPInstanceUID): path for path in paths}
  uids = sorted(files)  # in which order they are asked for
  sizes = {'listed': 5, 'counted': 5}

  def found(tag, values, **more):
    rows = [{tag: {'vr': 'UI', 'Value': [x]}} | more for x in values]
    return 200, JSON, json.dumps(rows).encode()

  def answer(method, path):
    if path.startswith('/root/studies/1.2.3/series?'):
      count = {'00201209': {'vr': 'IS', 'Value': [sizes['counted']]}}
      return found('0020000E', ['1.2.3.4'], **count)
    if path.startswith('/root/studies/1.2.3/series/1.2.3.4/instances/'):
      uid = path.rpartition('/')[2]
      if uid in uids[:3]:
        return 200, 'application/dicom', files[uid].read_bytes()
      if uid == uids[3] and sizes['counted'] == 5:  # another one
        return 200, 'application/dicom', files[uids[0]].read_bytes()
      return 404, 'text/plain', b'gone'
    # It gives two at a time.
    offset = int(path.partition('offset=')[2] or 0)
    page = uids[: sizes['listed']][offset : offset + 2]
    return found('00080018', page)

  config = ConfigDict({'data': {'source': 'volumes', 'channels': 1}})
  with service(answer) as (name, asked):
    source = address.source(f'{name}/studies/1.2.3')

    def fetch():
      return fetched_series.fetch(
        source, tmp_path / 'out', series='', config=config
      )

    sizes['listed'] = 4
    with pytest.raises(InputError, match='lists 4 of the 5') as error:
      fetch()
    assert_one_line(error)
    assert not (tmp_path / 'out').exists()
    sizes['listed'] = 5
    with pytest.raises(InputError, match='another instance came') as error:
      fetch()
    assert_one_line(error, name)
    # The whole ones stay, and are not asked for again.
    [folder] = (tmp_path / 'out' / 'fetched').iterdir()
    assert {path.stem for path in folder.iterdir()} == set(uids[:3])
    sizes['counted'] = 4
    (folder / f'{uids[1]}.dcm').unlink()
    del asked[:]
    with pytest.raises(InputError, match='HTTP 404 Not Found') as error:
      fetch()
    assert_one_line(error, name)
    instances = [path for _, path, _ in asked if '/instances/' in path]
    assert [path.rpartition('/')[2] for path in instances] == [uids[1], uids[3]]
    sizes['counted'] = sizes['listed'] = 3
    assert fetch() == folder
    assert {path.stem for path in folder.iterdir()} == set(uids[:3])


def test_without_the_libraries_one_line_says_what_to_install(monkeypatch):
  for name, text in (
    ('pynetdicom', 'dicom://A@host:104'),
    ('dicomweb_client.api', 'dicomweb://host'),
  ):
    module = 'store' if name == 'pynetdicom' else 'web'
    with monkeypatch.context() as patch:
      patch.delitem(sys.modules, f'medseg_jax.pacs.{module}')
      patch.delattr(f'medseg_jax.pacs.{module}')
      patch.setitem(sys.modules, name, None)
      with pytest.raises(InputError, match=r"'medseg_jax\[pacs\]'") as error:
        address.library(address.target(text))
      assert_one_line(error, name)
