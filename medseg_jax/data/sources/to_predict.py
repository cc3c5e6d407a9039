"""What there is to predict: every file of a folder is a case, or is named.

Nobody misses a mask that they do not know of. So what looks like a scan, by
its name or by its first bytes, and is none that can be read counts as failed;
all else that lies there is at least named.
"""

import os
import pathlib
from collections.abc import Collection, Iterator
from typing import NamedTuple

from medseg_jax.data.formats import nifti, nifti_header
from medseg_jax.data.formats.images import (
  IMAGE_SUFFIXES,
  list_folder,
  name_some,
)
from medseg_jax.data.formats.volume_formats import SUFFIXES, data_files
from medseg_jax.data.sources import dicom_series
from medseg_jax.data.sources.volume_files import (
  Failure,
  VolumeFiles,
  channels_beside,
  list_cases,
)
from medseg_jax.runtime.errors import InputError, counted

# Formats of scanners, microscopes and cameras beside those that are read.
_OTHER_SCANS = (
  '.analyze', '.avif', '.bif', '.czi', '.dcm', '.dicom', '.dng', '.gipl',
  '.hdr', '.heic', '.heif', '.ima', '.img', '.jfif', '.jxl', '.lif', '.lsm',
  '.mgh', '.mgz', '.mnc', '.mrxs', '.nd2', '.ndpi', '.npy', '.npz', '.par',
  '.rec', '.scn', '.svs', '.vsi', '.vti', '.vtk',
)  # fmt: skip
# They may hold scans, and one scan is often compressed by itself.
_ARCHIVES = (
  '.7z', '.bz2', '.gz', '.lz4', '.rar', '.tar', '.tgz', '.xz', '.zip', '.zst',
)  # fmt: skip
# (where, bytes) at the beginning of files whose name does not tell.
_MAGIC = (
  (0, b'\x89PNG'), (0, b'\xff\xd8\xff'), (0, b'II*\0'), (0, b'MM\0*'),
  (0, b'GIF8'), (0, b'NRRD0'), (0, b'ObjectType ='), (0, b'NDims ='),
  (4, b'jP  '), (8, b'WEBP'), (128, b'DICM'), (344, b'n+1\0'), (344, b'ni1\0'),
  (4, b'n+2\0'), (4, b'ftypheic'), (4, b'ftypavif'),
)  # fmt: skip
MASK_LIST = 'predictions.jsonl'  # lies beside the masks that were predicted
SENT_LIST = 'sent.jsonl'  # likewise, of what an archive has of them
_MOST = 1000  # files of a subfolder to look at


class Found(NamedTuple):
  """What lies in a folder, or is the one file that was given.

  Attributes:
    cases: to predict, by name.
    failures: what looks like a scan and cannot be one of them.
    unused: a few words on each thing that is left out.
  """

  cases: tuple[VolumeFiles, ...]
  failures: tuple[Failure, ...]
  unused: tuple[str, ...]


def find(
  path: str | os.PathLike,
  *,
  channels: int | None,
  leave_out: Collection[pathlib.Path] = (),
  series: str = '',
) -> Found:
  """Returns the cases of a folder, or the one of a file.

  Args:
    path: a folder or a file; of a case with a file for each channel any of
      them.
    channels: the number that volumes must have; None for 2-D images.
    leave_out: files and folders of the folder that are no input and no news.
    series: which of several DICOM series, see `dicom_series.find`.

  Raises:
    InputError: nothing there, or the one file cannot be a case.
  """
  path = pathlib.Path(path)
  absolute = {p.absolute() for p in leave_out}
  if channels is not None and _is_dicom(path, channels, absolute):
    if channels != 1:
      raise InputError(
        f'{path}: DICOM series, of one channel each, but the model takes '
        f'{channels}; allowed are volumes with them'
      )
    return Found(*dicom_series.find(path, series, absolute))
  if series:
    raise InputError(
      f'--series={series}, but {path} holds no DICOM series that the model '
      'could take; leave it out'
    )
  if path.is_dir():
    return _in_folder(path, channels, absolute)
  if not path.exists() and is_file_name(path):
    there = list_folder(path.parent)
    raise InputError(
      f'{path}: no such file; {path.parent} holds '
      f'{name_some(other.name for other in there)}'
    )
  if not path.exists():
    list_folder(path)  # says what is there
  if not _is_readable(path, channels):
    raise InputError(f'{path}: {_why_not(path, channels)}')
  if channels is None:
    return Found((VolumeFiles(path.stem, (path,)),), (), ())
  cases, failures = list_cases(channels_beside(path, channels), channels)
  if failures:
    raise InputError(failures[0].reason)
  return Found(cases, (), ())


def _is_dicom(
  path: pathlib.Path, channels: int, leave_out: Collection[pathlib.Path]
) -> bool:
  """Returns whether a path is DICOM, and no volume of another format is."""
  if not path.is_dir():
    return dicom_series.is_dicom(path)
  if any(_is_readable(p, channels) for p in list_folder(path)):
    return False
  return dicom_series.lie_in(path, leave_out)


def is_file_name(path: pathlib.Path) -> bool:
  """Returns whether a path that need not exist must mean a file."""
  return is_scan_name(path) or path.name.lower().endswith(_ARCHIVES)


def is_scan_name(path: pathlib.Path) -> bool:
  """Returns whether a file of this name must be an image or a volume."""
  name = path.name.lower()
  return name.endswith((*SUFFIXES, *IMAGE_SUFFIXES, *_OTHER_SCANS))


def _in_folder(
  folder: pathlib.Path,
  channels: int | None,
  leave_out: Collection[pathlib.Path],
) -> Found:
  entries = [p for p in list_folder(folder) if p.absolute() not in leave_out]
  if channels is not None:
    parts = set(data_files(entries))  # of volumes that are listed themselves
    entries = [
      path
      for path in entries
      if path not in parts or _is_readable(path, channels)
    ]
  readable, failures, unused = [], [], []
  foreign = False  # whether there was a file of another kind already
  for path in entries:
    if (path / MASK_LIST).is_file():  # of an earlier call
      unused.append(f'{path.name}/ (predicted masks)')
    elif path.is_dir():
      scans = list(_scans_below(path, channels, leave_out))
      if scans:
        can_be_read = [scan for scan in scans if _is_readable(scan, channels)]
        scan = (can_be_read or scans)[0]
        reason = (
          f'{path}: a folder with files that look like scans, such as '
          f'{scan.relative_to(folder)}; '
        )
        if can_be_read:
          reason += (
            'allowed are the files of one folder; name it as --input of its '
            'own, or move it away'
          )
        else:
          reason += _why_not(scan, channels, brief=foreign)
          foreign = True
        failures.append(Failure(f'{path.name}/', reason))
      elif not _holds(path, leave_out):
        unused.append(f'{path.name}/')
    elif _is_readable(path, channels):
      readable.append(path)
    elif _looks_like_scan(path, channels):
      # What the model takes is a long list, of which one line is enough.
      reason = f'{path}: {_why_not(path, channels, brief=foreign)}'
      failures.append(Failure(path.name, reason))
      foreign = True
    else:
      unused.append(path.name)
  if not readable and not failures:
    kind, allowed = ('image files', IMAGE_SUFFIXES)
    if channels is not None:
      kind, allowed = ('volumes', SUFFIXES)
    raise InputError(
      f'{folder}: no {kind}; found {name_some(p.name for p in entries)}; '
      f'allowed are {" ".join(allowed)}'
    )
  hidden = sum(1 for path in folder.iterdir() if path.name.startswith('.'))
  if hidden:
    unused.append(counted(hidden, 'hidden file'))
  match = _match_images(readable)
  if channels is not None:
    match = list_cases(readable, channels)
  return Found(match[0], (*match[1], *failures), tuple(unused))


def _match_images(
  paths: list[pathlib.Path],
) -> tuple[tuple[VolumeFiles, ...], tuple[Failure, ...]]:
  """Returns a case for each image, but where two of them share a stem."""
  by_stem: dict[str, list[pathlib.Path]] = {}
  for path in paths:
    by_stem.setdefault(path.stem, []).append(path)
  cases, failures = [], []
  for stem, same in sorted(by_stem.items()):
    if len(same) == 1:
      cases.append(VolumeFiles(stem, (same[0],)))
      continue
    names = ' and '.join(path.name for path in same)
    reason = (
      f'{same[0].parent}: {names} have the same stem, so their masks would '
      'have the same name; allowed is one file for each stem'
    )
    failures.append(Failure(names, reason))
  return tuple(cases), tuple(failures)


def _is_readable(path: pathlib.Path, channels: int | None) -> bool:
  """Returns whether the name is that of a file that can be a case.

  A link that leads nowhere is one, too: reading it says so.
  """
  if path.exists() and not path.is_file():
    return False
  if channels is None:
    return path.suffix.lower() in IMAGE_SUFFIXES
  return nifti.stem(path) != path.name


def _looks_like_scan(path: pathlib.Path, channels: int | None) -> bool:
  """Returns whether a file that cannot be read looks like a scan.

  Beside volumes, photographs look like what they mostly are: pictures of
  something else.
  """
  if path.exists() and not path.is_file():
    return False
  name = path.name.lower()
  photos = tuple(s for s in IMAGE_SUFFIXES if not s.startswith('.tif'))
  if channels is not None and name.endswith((*photos, '.jfif')):
    return False
  return is_file_name(path) or _begins_like_scan(path)


def _begins_like_scan(path: pathlib.Path) -> bool:
  try:
    with open(path, 'rb') as file:
      begin = file.read(352)
  except OSError:
    return False
  return any(begin[at:].startswith(magic) for at, magic in _MAGIC)


def _scans_below(
  folder: pathlib.Path,
  channels: int | None,
  leave_out: Collection[pathlib.Path],
) -> Iterator[pathlib.Path]:
  """Yields the files below a folder that look like scans, of its first ones."""
  looked_at = 0
  for parent, folders, names in os.walk(folder):
    here = pathlib.Path(parent)
    folders[:] = [
      name for name in folders if (here / name).absolute() not in leave_out
    ]
    for path in (here / name for name in sorted(names) if name[0] != '.'):
      if path.absolute() not in leave_out and (
        _is_readable(path, channels) or _looks_like_scan(path, channels)
      ):
        yield path
      looked_at += 1
      if looked_at == _MOST:
        return


def _holds(folder: pathlib.Path, leave_out: Collection[pathlib.Path]) -> bool:
  """Returns whether one of `leave_out` lies below `folder`."""
  return any(folder.absolute() in path.parents for path in leave_out)


def _why_not(
  path: pathlib.Path, channels: int | None, *, brief: bool = False
) -> str:
  """Returns why a file is no case, and unless `brief` what would be one."""
  name = path.name.lower()
  if path.exists() and not path.is_file():
    return 'no file and no folder; allowed is one of them'
  if channels == 1 and dicom_series.is_dicom(path):
    return (
      'DICOM beside volumes of another format, which come first; name the '
      'folder of its series as --input of its own'
    )
  kinds = f'2-D images: {" ".join(IMAGE_SUFFIXES)}'
  if channels is not None:
    kinds = f'volumes: {" ".join(SUFFIXES)}'
  allowed = '' if brief else f'; this model takes {kinds}'
  if name.endswith(_ARCHIVES) and not name.endswith(SUFFIXES):
    return f'an archive; unpack it and name the folder{allowed}'
  if name.endswith(nifti_header.SUFFIXES):
    return f'a NIfTI volume, which is not read{allowed}'
  if name.endswith(IMAGE_SUFFIXES):
    return f'no volume{allowed}'
  if is_scan_name(path):
    return f'files {path.suffix.lower()} are not read{allowed}'
  if path.exists() and _begins_like_scan(path):
    return f'an image under a name of no image{allowed}'
  return f'no image{allowed}'
