"""Which masks of a folder this program made, of what, and with what.

`predictions.jsonl` beside the masks has a line for each: its hash, that of its
image, that of the weights, and the settings. So a prediction that was killed
goes on, and what somebody else made, or has changed since, is told apart. A
line is on the disk before its mask has its name; where a kill or a full disk
cuts one off, its mask is simply made again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from medseg_jax.data.formats.volume_formats import data_files
from medseg_jax.data.sources.dicom_series import FORCED
from medseg_jax.data.sources.to_predict import MASK_LIST
from medseg_jax.experiment import build, mirroring
from medseg_jax.experiment.calibrated import Calibration
from medseg_jax.experiment.clinic_formats import (
  FILES,
  MEASUREMENTS,
  MESH,
  NUMBERS,
  OF_SERIES,
  PAGE,
  REPORT,
  RTSTRUCT,
  SCENE,
  SEG,
  TABLE,
)
from medseg_jax.experiment.members import Weights
from medseg_jax.experiment.prediction_targets import (
  APART,
  ENTROPY,
  PROBS,
  SAMPLE,
)
from medseg_jax.losses import uses_sigmoid
from medseg_jax.runtime.errors import InputError

_BEGIN = b'{"mask": '  # of each line
_MEANING = ('classes', 'label_values', 'regions', 'region_order', 'channels')
# What has no part in a mask: how many tiles at once, what else is written.
_NO_MATTER = ('batch_size', 'probabilities', 'uncertainty', 'disagreement')
# Which kinds of files each key of `config.clinic` has a part in.
_OF_CLINIC = {
  'clinic.codes': (*OF_SERIES, PAGE, NUMBERS),
  'clinic.lesions': (*OF_SERIES, PAGE, NUMBERS, TABLE),
  'clinic.name_patient': (PAGE, NUMBERS),
  'clinic.labelmap': (SEG, MEASUREMENTS),
  'clinic.targets': (RTSTRUCT,),
  'clinic.keyhole': (RTSTRUCT,),
}
_LONGEST = 60  # characters of a setting in a message


class Maker(NamedTuple):
  """What makes a mask out of an image.

  Attributes:
    weights: hash of the network's variables.
    settings: what of the config has a part in a mask.
    calibration: of its probabilities and volumes, which has none.
    clinic: what of the config has a part in files for the clinic alone.
    soft: whether surfaces are those of the probabilities.
  """

  weights: str
  settings: dict[str, Any]
  calibration: Calibration = Calibration()
  clinic: Mapping[str, Any] = {}
  soft: bool = False

  def of(self, kind: str) -> 'Maker':
    """Returns what makes a file of this kind; see `prediction_targets`."""
    more: dict[str, Any] = {}
    found = self.calibration
    if kind in (PROBS, SAMPLE, ENTROPY, APART) and found.temperature:
      more['temperature'] = list(found.temperature)
    if kind in (*FILES[REPORT], MEASUREMENTS) and found.bands:
      more['volume_bands'] = {
        name: [band.low, band.high] for name, band in found.bands.items()
      }
    if kind in (MESH, SCENE) and self.soft:
      more['surfaces'] = 'of the probabilities'
    for key, value in self.clinic.items():
      if kind in _OF_CLINIC.get(key, ()):
        more[key] = value
    return self._replace(settings=self.settings | more) if more else self


def maker_of(model: Weights) -> Maker:
  """Returns what a model makes masks with, all its configurations."""
  settings, hashes = {}, []
  for i, part in enumerate(model.parts):
    prefix = f'{part.name}.' if i else ''
    own = _settings_of(part.config)
    settings |= {f'{prefix}{key}': value for key, value in own.items()}
    hashes += [(part.name, _hash_of(member)) for member in part.variables]
    if part.previous is not None:  # of a cascade
      first = maker_of(part.previous)
      hashes.append((part.previous.parts[0].name, first.weights))
      prefix += 'previous.'
      settings |= {f'{prefix}{k}': v for k, v in first.settings.items()}
  [(_, weights), *others] = hashes
  if others:
    weights = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
  if model.postprocessing:
    settings['postprocessing'] = model.postprocessing
  # As the file will have them: lists in place of tuples.
  settings = json.loads(json.dumps(settings))
  clinic = model.parts[0].config.get('clinic', ConfigDict()).to_dict()
  clinic.pop('followup', None)  # of two masks, and of none of them
  clinic = {f'clinic.{key}': value for key, value in clinic.items() if value}
  clinic = json.loads(json.dumps(clinic))
  soft = model.parts[0].config.inference.get('probabilities', False)
  return Maker(weights, settings, model.calibration, clinic, soft)


def _settings_of(config: ConfigDict) -> dict[str, Any]:
  """Returns what of a resolved config has a part in a mask."""
  settings = {f'data.{key}': config.data[key] for key in _MEANING}
  settings |= {
    f'data.{key}': True for key in FORCED if config.data.get(key, False)
  }
  preprocessing = build.preprocessing_of(config)._asdict()
  settings |= _flat('preprocessing', preprocessing)
  settings |= _flat('model', config.model) | {'dtype': config.dtype}
  settings |= _flat('inference', config.inference)
  for key in _NO_MATTER:
    settings.pop(f'inference.{key}', None)
  settings['inference.patch_size'] = build.tile_size(config)
  settings['inference.mirror'] = mirroring.in_prediction(config)  # which axes
  settings['output'] = 'sigmoid' if uses_sigmoid(config.loss) else 'softmax'
  return settings


def hash_files(paths: Sequence[pathlib.Path]) -> str:
  """Returns a hash of the content of files, in this order.

  With that of the files beside them that hold the voxels of some.
  """
  digest = hashlib.sha256()
  for path in (*paths, *data_files(paths)):
    with open(path, 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()


class Record:
  """The file of one folder, and what it said when it was opened.

  Attributes:
    path: of the file.
    lines: the last line on each mask, by the mask's name.

  Args:
    folder: of the masks; it need not exist yet.

  Raises:
    InputError: something else lies at its place.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.path = folder / MASK_LIST
    self.lines: dict[str, dict[str, Any]] = {}
    self._hashed: tuple[tuple[pathlib.Path, ...], list[int], str] = ((), [], '')
    if not self.path.exists():
      return
    mistaken = f'{self.path}: no list of masks as --mode=predict keeps it there'
    if not self.path.is_file():
      raise InputError(f'{mistaken}; move it away, or name another --output')
    content = self.path.read_bytes()
    for text in content.splitlines():
      if (line := _read_line(text)) is not None:
        self.lines[line['mask']] = line
    # What is cut off may be shorter, and of zeros where the power failed.
    begin = content.lstrip(b'\0\n')[: len(_BEGIN)]
    if not _BEGIN.startswith(begin):
      raise InputError(f'{mistaken}; move it away, or name another --output')

  def name_of(self, target: pathlib.Path) -> str:
    """Returns what a file below the folder is called in the lines."""
    return target.relative_to(self.folder).as_posix()

  def differs(
    self, target: pathlib.Path, sources: Sequence[pathlib.Path], maker: Maker
  ) -> str:
    """Returns how a file is not the mask that would be made, '' if it is.

    Args:
      target: the file that is there.
      sources: the files of its image.
      maker: of the mask that would be made.
    """
    line = self.lines.get(self.name_of(target))
    if line is None:
      return 'nothing tells that this program made it'
    if line['sha256'] != hash_files([target]):
      return 'it was changed since this program made it'
    if line['weights'] != maker.weights:
      return 'it was made with other weights'
    before, now = line['settings'], maker.settings
    for key in sorted(before.keys() | now.keys()):
      if before.get(key) != now.get(key):
        old, new = (str(x.get(key))[:_LONGEST] for x in (before, now))
        return f'it was made with another {key}, {old} and not {new}'
    if line['image_sha256'] != self._hash_of_sources(tuple(sources)):
      return 'it was made from another image of this name'
    return ''

  def _hash_of_sources(self, sources: tuple[pathlib.Path, ...]) -> str:
    """Returns the hash of an image, of which there may be many files."""
    times = [path.stat().st_mtime_ns for path in sources]
    if self._hashed[:2] != (sources, times):
      self._hashed = sources, times, hash_files(sources)
    return self._hashed[2]

  def is_to_make(
    self, target: pathlib.Path, sources: Sequence[pathlib.Path], maker: Maker
  ) -> bool:
    """Returns whether a file is missing, or of other weights or settings.

    Arguments are those of `differs`.

    Raises:
      InputError: what is in its place did not come from here.
    """
    if not target.exists():
      return True
    if not target.is_file():
      raise InputError(f'{target}: no file; move it away')
    reason = self.differs(target, sources, maker)
    if not reason:
      return False
    line = self.lines.get(self.name_of(target))
    if line is None or line['sha256'] != hash_files([target]):
      raise InputError(
        f'{target}: is not overwritten: {reason}; move it away, and it is made '
        'anew'
      )
    return True

  def add(
    self,
    mask: pathlib.Path,
    name: str,
    sources: Sequence[pathlib.Path],
    image_hash: str,
    maker: Maker,
    **more: Any,
  ) -> None:
    """Writes a line, to the disk.

    Args:
      mask: the file, under whatever name.
      name: that it will have.
      sources: the files of its image.
      image_hash: their hash.
      maker: what it was made with.
      **more: what else the line is to say.
    """
    line = {
      'mask': name,
      'sha256': hash_files([mask]),
      'image': [os.path.abspath(path) for path in sources],
      'image_sha256': image_hash,
      'weights': maker.weights,
      'settings': maker.settings,
      **more,
    }
    append_line(self.path, line)


def append_line(path: pathlib.Path, line: Mapping[str, Any]) -> None:
  """Writes a line of JSON, to the disk, whatever the file ends with."""
  text = json.dumps(line)
  with open(path, 'ab+') as file:
    with contextlib.suppress(OSError):  # some disks have no locks
      fcntl.flock(file, fcntl.LOCK_EX)  # other processes write here, too
    if file.tell() and not _ends_line(file):
      text = f'\n{text}'  # the one before was cut off
    file.write(f'{text}\n'.encode())
    file.flush()
    os.fsync(file.fileno())


def _ends_line(file) -> bool:
  file.seek(-1, os.SEEK_END)
  return file.read(1) == b'\n'


def _read_line(text: bytes) -> dict[str, Any] | None:
  """Returns what a line says; None where it is cut off or something else."""
  try:
    line = json.loads(text)
  except (ValueError, RecursionError):
    return None
  if not isinstance(line, dict):
    return None
  texts = ('mask', 'sha256', 'image_sha256', 'weights')
  whole = all(isinstance(line.get(key), str) for key in texts)
  return line if whole and isinstance(line.get('settings'), dict) else None


def _flat(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
  return {f'{section}.{key}': value for key, value in values.items()}


def _hash_of(variables: Any) -> str:
  """Returns a hash of arrays by name, wherever they lie."""
  flat = traverse_util.flatten_dict(jax.device_get(variables), sep='.')
  digest = hashlib.sha256()
  for name, array in sorted(flat.items()):
    array = np.ascontiguousarray(array)
    digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
