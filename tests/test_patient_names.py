"""Which names of folders tell who a patient is."""

import pytest
from dicom_cases import change, values, write

from medseg_jax.data.formats.dicom import reading
from medseg_jax.data.sources import dicom_series


@pytest.mark.parametrize(
  ('folder', 'name', 'number', 'tells'),
  [
    ('LIDC-IDRI-0001', '', 'LIDC-IDRI-0001', True),
    ('LI_WU', 'Li^Wu', '7', True),
    ('山田太郎', '山田^太郎', '7', True),
    ('Muller_1', 'Müller^H', '7', True),
    ('MUELLER', 'Müller^H', '7', True),
    ('Mu\u0308ller', 'Mueller^H', '7', True),
    ('Weiss_CT', 'Weiß^B', '7', True),
    ('baer', 'Bär^C', '7', True),
    ('Sorensen', 'Sørensen^D', '7', True),
    ('Aagaard', 'Ågård^E', '7', True),
    ('Lodz', 'Łódź^F', '7', True),
    ('AsaOeberg', 'Öberg^Åsa', '7', True),
    ('le_femur', 'Lê^A', '7', False),
    ('scan A_1234', '', 'A-1234', True),
    ('brain_test', 'Test^Patient', '1', False),
    ('patient_07', 'Patient^A', '1', False),
    ('series', 'Ser^An', '12', False),
  ],
)
def test_folders_that_tell_the_patient(tmp_path, folder, name, number, tells):
  paths = write(tmp_path, values((3, 4, 5)))
  for path in paths:
    change(
      path, PatientName=name, PatientID=number,
      SpecificCharacterSet='ISO_IR 192',
    )  # fmt: skip
  [series] = reading.read_files(paths).series
  assert dicom_series.tells_patient(folder, series) == tells
  for path in paths:
    change(path, PatientIdentityRemoved='YES')
  [series] = reading.read_files(paths).series
  assert not dicom_series.tells_patient(folder, series)
