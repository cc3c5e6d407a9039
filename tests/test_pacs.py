"""Results to a real archive and series from it: Orthanc, started here."""

import hashlib
import json
import re

import nibabel
import numpy as np
import orthanc
import pydicom
import pytest
from conftest import write_volumes
from data_cases import assert_one_line
from dicom_cases import change, values, write
from pacs_cases import RTSTRUCT, SEG, node
from predict_cases import compile_once
from small import write_untrained
from test_clinic import complete
from test_volumes_loop import config_for

from medseg_jax import main
from medseg_jax.clinic import (
  codes,
  measurements,
  numbers,
  segmentation,
  structure_set,
  structured_report,
)
from medseg_jax.data.formats.dicom import reading
from medseg_jax.experiment import fetched_series, trained_model
from medseg_jax.pacs import address, store, web
from medseg_jax.programs import predict
from medseg_jax.runtime.errors import InputError

ALL = ('seg', 'rtstruct', 'report')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  root = tmp_path_factory.mktemp('model')
  data = write_volumes(root / 'data', 5)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(root / 'cache'))
    write_untrained(config_for(data), root / 'run')
  return root / 'run' / 'model'


@pytest.fixture(scope='module')
def process(tmp_path_factory):
  with orthanc.running(tmp_path_factory.mktemp('orthanc')) as found:
    yield found


@pytest.fixture
def archive(process, monkeypatch):
  """Returns the archive, empty."""
  compile_once(monkeypatch)
  process.clear()
  return process


def run(model, source, output, **options):
  config = trained_model.read_config(None, model, '')
  predict.run(
    config, None, model=model, input_path=source, output_dir=output, **options
  )


def hashes(folder):
  return {
    path: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)
    for path in folder.rglob('*')
    if path.is_file()
  }


def put(archive, paths):
  """Stores images in an archive, for others to fetch."""
  answers = [*store.send(address.target(archive.node), paths)]
  assert not any(answer.refused for answer in answers)


def write_objects(folder, series):
  """Writes all three kinds of objects of a ball in a ball."""
  image = reading.read_volume(series).array[..., 0]
  places = np.indices(image.shape).T / image.shape[::-1] - 0.5
  distances = np.linalg.norm(places.T, axis=0)
  mask = (distances < 0.4).astype(int) + (distances < 0.2)
  native = reading.to_native(mask, series)
  meanings = codes.meanings(('background', 'shell', 'ball'), ())
  of = dict(meanings=meanings, model='some model', version='1.2')
  paths = [folder / name for name in ('seg.dcm', 'rtstruct.dcm', 'sr.dcm')]
  segmentation.write(paths[0], native, series, **of)
  structure_set.write(paths[1], native, series, **of)
  affine = np.diag([-1, -1, 1, 1]) @ series.affine
  measured = [
    numbers.Structure(
      meaning,
      measurements.measure(
        mask, image[..., None], affine, indices=(i,), lesions=False
      ),
      (),
    )
    for i, meaning in enumerate(meanings, 1)
  ]
  structured_report.write(paths[2], measured, native, series, **of)
  return paths


@pytest.fixture(scope='module')
def objects(real_data, tmp_path_factory):
  """Returns all three of a real series, and its study."""
  study = real_data / 'dicom' / 'mr_hippocampus_studies' / 'Study1'
  [series] = reading.read_files([*study.rglob('*.dcm')]).series
  folder = tmp_path_factory.mktemp('objects')
  return write_objects(folder, series), series.first.study


@pytest.mark.parametrize('way', ['node', 'web'])
def test_what_comes_back_is_what_was_stored(archive, objects, tmp_path, way):
  paths, study = objects
  to = address.target(getattr(archive, way))
  library = address.library(to)
  library.probe(to, [pydicom.dcmread(path).SOPClassUID for path in paths])
  answers = [*library.send(to, paths)]
  assert answers == [(path, '', '') for path in paths]
  assert archive.count('Instances') == 3
  source = address.source(f'{archive.web}/studies/{study}')
  client = web.connect(source)
  found = {each.uid: each for each in web.find_series(client, source)}
  assert {each.modality for each in found.values()} == {'SEG', 'RTSTRUCT', 'SR'}
  for path in paths:
    stored = pydicom.dcmread(path)
    of = found[stored.SeriesInstanceUID]
    assert web.find_instances(client, source, of) == [stored.SOPInstanceUID]
    back = tmp_path / 'back' / path.name
    web.retrieve(client, source, of, stored.SOPInstanceUID, back)
    read = pydicom.dcmread(back)
    assert [*read.iterall()] == [*stored.iterall()] and read == stored
    if 'PixelData' in stored:
      assert read.PixelData == stored.PixelData
    # Of the file's own head only those who wrote it may be others.
    differ = {
      keyword
      for keyword in {*read.file_meta.dir(), *stored.file_meta.dir()}
      if read.file_meta.get(keyword) != stored.file_meta.get(keyword)
    }
    assert differ <= {
      *('FileMetaInformationGroupLength', 'ImplementationClassUID'),
      *('ImplementationVersionName', 'SourceApplicationEntityTitle'),
    }, differ


def test_each_object_is_sent_once(archive, model, tmp_path, capsys):
  complete(write(tmp_path / 'study', values((14, 15, 13))))
  out = tmp_path / 'out'

  def told(name):
    of = dict(formats=('seg', 'rtstruct'), send=address.target(name))
    run(model, tmp_path / 'study', out, **of)
    line = re.search('^sent .*', capsys.readouterr().out, re.MULTILINE)[0]
    return int(line.split()[1])

  assert told(archive.node) == 2 == archive.count('Instances')
  of_study = archive.count('Studies'), archive.count('Series')
  assert of_study == (1, 2)
  written = hashes(out / 'study')
  archive.clear()
  assert told(archive.node) == 0 == archive.count('Instances')
  # Another archive has nothing of it, and one object is new.
  assert told(archive.web) == 2 == archive.count('Instances')
  (out / 'study' / 'seg.dcm').unlink()
  lines = (out / 'sent.jsonl').read_text().splitlines()
  assert [json.loads(line)['to'] for line in lines] == (
    [archive.node] * 2 + [archive.web] * 2
  )
  kept = [line for line in lines if 'seg.dcm' not in line]
  (out / 'sent.jsonl').write_text('\n'.join([*kept, lines[0][:40]]))
  assert told(archive.node) == 1
  (out / 'sent.jsonl').unlink()
  assert told(archive.node) == 2 == archive.count('Instances')
  names = {path: digest for path, (digest, _) in written.items()}
  assert {p: d for p, (d, _) in hashes(out / 'study').items()} == names
  (out / 'sent.jsonl').write_text('a list of mine')
  with pytest.raises(InputError, match='no list of what was sent') as error:
    told(archive.node)
  assert_one_line(error)


def test_a_second_run_sends_what_a_first_one_could_not(
  model, tmp_path, monkeypatch, capsys
):
  compile_once(monkeypatch)
  complete(write(tmp_path / 'study', values((14, 15, 13))))
  out, statuses = tmp_path / 'out', {RTSTRUCT: 0xA700}
  of = dict(formats=('nifti', 'seg', 'rtstruct', 'report'))
  with node(statuses) as (to, asked):
    with pytest.raises(InputError, match='not sent .*: 1 of 3 obj') as error:
      run(model, tmp_path / 'study', out, send=to, **of)
    assert_one_line(error, 'study/rtstruct.dcm: status 0xA700', to.name)
    told = capsys.readouterr().out
    assert 'not sent  study/rtstruct.dcm: status 0xA700 (out of' in told
    assert 'sent      2 objects' in told and len(asked) == 3
    masks = {path.name for path in (out / 'study').iterdir()}
    assert {'mask.nii.gz', 'rtstruct.dcm', 'seg.dcm'} <= masks
    statuses.clear()
    run(model, tmp_path / 'study', out, send=to, **of)
    told = capsys.readouterr().out
    assert asked[3:] == [RTSTRUCT] and 'sent      1 object to' in told
    assert 'kept      2 objects that' in told
    run(model, tmp_path / 'study', out, send=to, **of)
    assert len(asked) == 4
  # What it does not take at all is told before the work.
  with (
    node({}, classes=[SEG]) as (to, asked),
    pytest.raises(InputError, match='takes no RT Structure Set') as error,
  ):
    run(model, tmp_path / 'study', tmp_path / 'none', send=to, **of)
  assert_one_line(error)
  assert not asked and not (tmp_path / 'none').exists()


def test_a_series_of_an_archive_has_the_mask_of_its_folder(
  archive, model, tmp_path, capsys
):
  paths = write(tmp_path / 'study', values((14, 15, 13)))
  complete(paths)
  put(archive, paths)
  out = tmp_path / 'out'
  source = address.source(f'{archive.web}/studies/1.2.3')
  run(model, source, out, formats=ALL, send=address.target(archive.web))
  told = capsys.readouterr().out
  [folder] = (out / 'fetched').iterdir()
  assert f'14 new files into {folder}; they name the patient' in told
  assert folder.name.startswith('series_7_') and len([*folder.iterdir()]) == 14
  assert archive.count('Series') == 4
  run(model, tmp_path / 'study', tmp_path / 'disk', formats=('nifti',))
  # Its results are in the same study by now, and no candidates.
  run(model, source, tmp_path / 'again', formats=('nifti',))
  expected = nibabel.load(tmp_path / 'disk' / 'study.nii.gz')
  mask = nibabel.load(tmp_path / 'again' / f'{folder.name}.nii.gz')
  assert len(np.unique(expected.get_fdata())) > 1
  np.testing.assert_array_equal(mask.get_fdata(), expected.get_fdata())
  np.testing.assert_array_equal(mask.affine, expected.affine)
  # What is there is not fetched again, nor what was sent sent.
  before = hashes(folder)
  [lost, *_] = sorted(folder.iterdir())
  lost.unlink()
  capsys.readouterr()
  run(model, source, out, formats=ALL, send=address.target(archive.web))
  told = capsys.readouterr().out
  assert '1 new file into' in told and 'kept      1 mask' in told
  assert 'sent      0 objects' in told
  after = hashes(folder)
  assert after.pop(lost)[0] == before.pop(lost)[0] and after == before
  (folder / 'mine.dcm').write_text('')
  with pytest.raises(InputError, match='mine.dcm; move them away') as error:
    run(model, source, out)
  assert_one_line(error)


def test_several_series_are_listed_and_one_is_chosen(archive, model, tmp_path):
  for number, words in ((3, 'T1 sagittal'), (11, 'T1 axial')):
    paths = write(
      tmp_path / words, values((14, 15, 13), seed=number), SeriesNumber=number,
      SeriesDescription=words, SeriesInstanceUID=f'1.2.3.{number}',
    )  # fmt: skip
    for path in paths:
      change(path, PatientID='p')
    put(archive, paths)
  study = f'{archive.web}/studies/1.2.3'
  config = trained_model.read_config(None, model, '')
  for asked in ('', 'T1', '12'):
    with pytest.raises(InputError) as error:
      fetched_series.fetch(
        address.source(study), tmp_path / 'no', series=asked, config=config
      )
    assert_one_line(
      error, '3 T1 sagittal CT 14 objects', '11 T1 axial CT 14', '--series='
    )
  for i, (end, asked) in enumerate([('', '11'), ('', 'AXIAL'), ('11', '')]):
    named = f'{study}/series/1.2.3.{end}' if end else study
    folder = fetched_series.fetch(
      address.source(named), tmp_path / f'out{i}', series=asked, config=config
    )
    [series] = reading.read_files([*folder.iterdir()]).series
    assert series.first.series == '1.2.3.11' and len(series.frames) == 14
    assert folder.name.startswith('series_11_')
  for named in (f'{study}/series/1.2.4', f'{archive.web}/studies/1.7'):
    with pytest.raises(InputError, match='series') as error:
      fetched_series.fetch(
        address.source(named), tmp_path / 'no', series='', config=config
      )
    assert_one_line(error, archive.web)
  assert not (tmp_path / 'no').exists()


def test_the_program_tells_at_once_what_cannot_be_sent(
  archive, model, tmp_path, monkeypatch, capsys
):
  complete(write(tmp_path / 'study', values((14, 15, 13))))
  closed = orthanc.free_port()
  for to, formats, words in (
    (f'dicom://ME@127.0.0.1:{archive.dicom}', 'seg', 'Called AE title not rec'),
    (f'dicom://ORTHANC@127.0.0.1:{closed}', 'seg', 'Connection refused'),
    (f'dicom://ORTHANC@127.0.0.1:{archive.http}', 'seg', 'speaks no DICOM'),
    (f'dicomweb://127.0.0.1:{closed}/dicom-web', 'seg', 'Connection refused'),
    (f'{archive.web}er', 'seg', 'HTTP 404 Not Found'),
    (archive.node, 'nifti,report', 'add seg or rtstruct'),
  ):
    argv = [
      'main', '--mode=predict', f'--model={model}', f'--send={to}',
      f'--input={tmp_path / "study"}', f'--output={tmp_path / "out"}',
      f'--formats={formats}',
    ]  # fmt: skip
    monkeypatch.setattr('sys.argv', argv)
    capsys.readouterr()
    assert main.main() == 1
    out, line = capsys.readouterr()
    assert words in line and line.count('\n') == 1, line
    assert line.startswith('error: ') and 'network' not in out
  assert not (tmp_path / 'out').exists()
