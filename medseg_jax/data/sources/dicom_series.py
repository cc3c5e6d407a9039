"""DICOM series to predict, as a scanner or an archive has written them.

A folder, with all below it, is looked through for files that begin as DICOM
files do; their names say nothing. pydicom is imported where there are such.
"""

import hashlib
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from medseg_jax.data.case import Case
from medseg_jax.data.formats.first_bytes import is_dicom
from medseg_jax.data.formats.images import name_some
from medseg_jax.data.shear import SKEW, off_right_angles
from medseg_jax.data.sources.volume_files import Failure, VolumeFiles
from medseg_jax.runtime.errors import InputError, counted

if TYPE_CHECKING:
  from medseg_jax.data.formats.dicom.series import Series

ALL = 'all'
# Keys of `config.data` that have series read which are refused otherwise.
FORCED = ('allow_gaps', 'assume_hounsfield')
_MOST = 1000  # files to look at for the first one
_TELLING = 4  # letters of a patient's name that tell it
_NOBODY = ('patient', 'test', 'anon', 'anonymous', 'anonymized', 'subject')
# What dropping a letter's marks would not give, or not alone.
_AS_TWO = str.maketrans(
  {'ä': 'ae', 'æ': 'ae', 'å': 'aa', 'ö': 'oe', 'ø': 'oe', 'œ': 'oe', 'ü': 'ue'}
  | {'ł': 'l', 'đ': 'd', 'ı': 'i'}
)


def lie_in(folder: pathlib.Path, leave_out: Collection[pathlib.Path]) -> bool:
  """Returns whether one of the first files in a folder, or below, is DICOM."""
  files = files_in(folder, leave_out)
  return any(map(is_dicom, itertools.islice(files, _MOST)))


def files_in(
  folder: pathlib.Path, leave_out: Collection[pathlib.Path]
) -> Iterator[pathlib.Path]:
  """Yields the files of a folder and below, but hidden and some others."""
  for parent, folders, names in os.walk(folder):
    here = pathlib.Path(parent)
    folders[:] = sorted(
      name for name in folders if (here / name).absolute() not in leave_out
    )
    for path in (here / name for name in sorted(names) if name[0] != '.'):
      if path.absolute() not in leave_out:
        yield path


def find(
  path: pathlib.Path,
  wanted: str,
  leave_out: Collection[pathlib.Path] = (),
) -> tuple[tuple[VolumeFiles, ...], tuple[Failure, ...], tuple[str, ...]]:
  """Returns the cases, the damaged files, and a line for each other one.

  Args:
    path: a folder, or one multi-frame file.
    wanted: which series: its number, UID or words of its description, or 'all';
      '' for the only one.
    leave_out: absolute paths that are no input.

  Raises:
    InputError: there is none of that name, or there are several.
  """
  reading = library()
  paths = [path]
  if path.is_dir():
    paths = list(files_in(path, leave_out))
  found = reading.read_files(paths)
  several = [s for s in found.series if len(s.frames) > 1]
  unused = [
    f'{_below(s.first.path, path)}: a single slice'
    for s in found.series
    if s not in several
  ]
  unused += [
    f'{_below(x.path, path)}: {x.reason}'
    for x in found.set_aside
    if not x.damaged
  ]
  failures = [
    Failure(x.path.name, f'{x.path}: {x.reason}')
    for x in found.set_aside
    if x.damaged
  ]
  if failures and not several:
    raise InputError(failures[0].reason)
  chosen = _choose(several, wanted, path)
  unused += [
    f'series {s.name} in {_below(s.first.path.parent, path)}'
    for s in several
    if s not in chosen
  ]
  unused += [note for s in chosen for note in s.notes]
  names = _names(chosen)
  name = path.resolve().name
  if len(chosen) == 1 and name:
    if tells_patient(name, chosen[0]):
      # Others of the same number may go to the same place.
      key = hashlib.sha256(chosen[0].first.series.encode()).hexdigest()
      names = [f'{names[0]}_{key[:8]}']
      unused.append(f"its name, the patient's: {names[0]} is used")
    else:
      names = [name]
  cases = tuple(
    VolumeFiles(own, tuple(dict.fromkeys(f.path for f in series.frames)))
    for own, series in zip(names, chosen, strict=True)
  )
  return cases, tuple(failures), tuple(unused)


def _below(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  return path.relative_to(folder) if path != folder else path


def _choose(
  series: Sequence['Series'], wanted: str, path: pathlib.Path
) -> list['Series']:
  if not series and path.is_file():
    raise InputError(
      f'{path}: a single slice; allowed is the folder of its series, or a file '
      'of several frames'
    )
  if not series:
    raise InputError(
      f'{path}: DICOM files, but no series of two slices or more among them'
    )
  if wanted == ALL:
    return list(series)
  found = list(series)
  if wanted:
    found = [each for each in series if _is_named(each, wanted)]
    # 'b 100' is that of b 100 alone, though b 1000 begins so.
    whole = [each for each in found if _has_words(each.name, wanted)]
    found = whole if len(whole) == 1 else found
  if len(found) == 1:
    return found
  names = [each.name for each in series]
  listed = '; '.join(
    each.name
    if names.count(each.name) == 1
    else f'{each.name} {each.first.series}'
    for each in series
  )
  asked = f'--series={wanted} names {len(found)} of ' if wanted else ''
  raise InputError(
    f'{path}: {asked}{counted(len(series), "series", "series")}: {listed}; '
    f'choose one with --series= its number, UID or words of its description, '
    f'or all of them with --series={ALL}'
  )


def _is_named(series: 'Series', wanted: str) -> bool:
  first = series.first
  number = str(first.header.get('SeriesNumber', ''))
  return wanted in (number, first.series) or (
    not wanted.isdigit() and wanted.lower() in series.name.lower()
  )


def _has_words(name: str, wanted: str) -> bool:
  words = re.escape(wanted.lower())
  return re.search(rf'(?<!\S){words}(?!\S)', name.lower()) is not None


def _names(series: Sequence['Series']) -> list[str]:
  """Returns a name for each of several: nobody's name, and no other's."""
  names: list[str] = []
  for i, each in enumerate(series):
    number = each.first.header.get('SeriesNumber')
    name = f'series_{number}' if number is not None else f'series_{i + 1:03d}'
    names.append(name if name not in names else f'{name}_{i + 1:03d}')
  return names


def tells_patient(name: str, series: 'Series') -> bool:
  """Returns whether a name tells who the patient is, as archives name folders.

  It would be that of masks, tables and reports, which go to others. What was
  made anonymous may keep its name.
  """
  header = series.first.header
  if str(header.get('PatientIdentityRemoved', '')) == 'YES':
    return False
  person = _words(str(header.get('PatientName', '')))
  own = _words(name)
  there = [_sound(word) for word in own]
  if any(_tells(word) for word in person if _sound(word) in there):
    return True
  wholes = [''.join(person), ''.join(reversed(person))]
  wholes.append(''.join(_words(str(header.get('PatientID', '')))))
  whole = _sound(''.join(own))
  return any(len(w) >= _TELLING and _sound(w) in whole for w in wholes)


def _words(text: str) -> list[str]:
  """Returns its words without marks and case, however it is composed.

  Letters that are often written as two are two: Müller is mueller.
  """
  plain = unicodedata.normalize('NFKC', text).casefold().translate(_AS_TWO)
  plain = unicodedata.normalize('NFKD', plain)
  plain = ''.join(c for c in plain if not unicodedata.combining(c))
  return [word for word in re.split(r'[\W_]+', plain) if word]


def _sound(word: str) -> str:
  """Returns what is the same of Mueller, Müller and Muller."""
  return re.sub('([aou])e|aa', lambda found: found[1] or 'a', word)


def _tells(word: str) -> bool:
  """Returns whether a word of a patient's name alone tells who it is."""
  return word not in _NOBODY and (
    len(word) >= (_TELLING if word.isascii() else 2)
  )


def only(paths: Sequence[pathlib.Path]) -> 'Series':
  """Returns the series that files hold."""
  found = library().read_files(list(paths))
  series = [each for each in found.series if len(each.frames) > 1]
  if len(series) != 1:
    reasons = [f'{x.path.name} {x.reason}' for x in found.set_aside]
    raise InputError(
      f'{paths[0]}: {counted(len(series), "series", "series")} in its '
      f'{counted(len(paths), "file")}'
      + (f' ({name_some(reasons, 3)})' if reasons else '')
      + '; allowed are the files of one series'
    )
  return series[0]


def read(name: str, paths: Sequence[pathlib.Path], **forced: bool) -> Case:
  """Returns the case of the files of one series, image `[z, y, x, 1]`.

  Args:
    name: of the case.
    paths: the files.
    **forced: see `reading.read_volume`.

  Raises:
    InputError: they are of none, of several, or cannot be read.
  """
  reading, series = library(), only(paths)
  volume = reading.read_volume(series, **forced)
  return Case(
    name,
    volume.array,
    None,
    volume.spacing,
    volume.affine,
    measured=reading.measured(series),
  )


def grid_of(paths: Sequence[pathlib.Path]) -> Any:
  """Returns the grid of `read`'s volume, from the headers alone."""
  return library().grid_of_series(only(paths))


def find_oddities(
  paths: Sequence[pathlib.Path], **forced: bool
) -> Iterator[str]:
  """Yields a line for each thing that is odd about one series.

  Args:
    paths: its files.
    **forced: see `told_of`.
  """
  series, where = only(paths), paths[0].parent
  if (lean := off_right_angles(series.affine)) > SKEW:
    yield (
      f'{where}: its slices are shifted against each other, as by a gantry '
      f'tilted by {lean:.3g} degrees; the network sees them resampled to right '
      'angles, the mask lies on the slices as they are'
    )
  yield from told_of(series, **forced)


def told_of(
  series: 'Series',
  *,
  allow_gaps: bool = False,
  assume_hounsfield: bool = False,
) -> Iterator[str]:
  """Yields what is to be said of a series that is read where others would not.

  Args:
    series: any.
    allow_gaps: see `reading.read_volume`.
    assume_hounsfield: likewise.
  """
  where = series.first.path.parent
  if allow_gaps and (missing := series.missing):
    places = [series.position_of(i) for i in missing]
    texts = [f'({", ".join(f"{x:.2f}" for x in place)})' for place in places]
    yield (
      f'{where}: {counted(len(missing), "slice")} missing, at '
      f'{name_some(texts, 3)} mm: filled in for the network alone, as '
      'config.data.allow_gaps asks; no mask is there, and volumes count the '
      'slices that are'
    )
  if assume_hounsfield and any(map(library().lacks_rescale, series.frames)):
    yield (
      f'{where}: a CT without RescaleSlope; its values are taken as Hounsfield '
      'units as they are stored, as config.data.assume_hounsfield asks'
    )


def library() -> Any:
  """Returns `data.formats.dicom.reading`, which needs an extra.

  Raises:
    InputError: that is not installed.
  """
  try:
    from medseg_jax.data.formats.dicom import reading
  except ImportError as error:
    raise InputError(
      f'DICOM files need {error.name or "pydicom"}: pip install '
      "'medseg_jax[clinic]'"
    ) from error
  return reading
