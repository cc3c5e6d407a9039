"""Where the voxels of a NIfTI file lie, also where its header is at odds.

A header says it up to three times: in the sform, in the qform, and by the sizes
in pixdim. The directions and the position are those of the sform, else those of
the qform. The sizes are those of pixdim, since many a program has written an
sform of 1 mm beside them; where the two agree this is no choice. What does not
agree is an oddity, told with the file's name.

Inside the program the axes of a volume are (z, y, x): z runs to Superior, y to
Posterior and x to Left, as closely as the file's own axes allow. Affines take
voxel indices in this order to mm in the world of NIfTI, which is Right,
Anterior, Superior.
"""

import contextlib
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import nibabel as nib
import numpy as np

from medseg_jax.data.shear import SKEW, off_right_angles, spacing_of
from medseg_jax.runtime.errors import InputError

_UNITS = {1: (1e3, 'metre'), 2: (1.0, 'mm'), 3: (1e-3, 'micrometre')}
# World axis and direction of z, y, x: Superior, Posterior, Left.
_WORLD_AXES, _DIRECTIONS = (2, 1, 0), (1, -1, -1)
# Sizes of voxels in mm, and positions, that something real can have.
_SMALLEST, _LARGEST, _FARTHEST = 1e-6, 1e4, 1e9
# What counts as the same: sizes, angles in degrees, positions in voxels.
_SAME_SIZE, _SAME_ANGLE, _SAME_PLACE = 1e-3, 1.0, 0.5


class Grid(NamedTuple):
  """The geometry of a file, in the order of axes inside the program.

  Attributes:
    shape: (z, y, x).
    channels: number of them.
    spacing: size of a voxel along z, y, x in mm; of a file whose axes are off
      right angles that at right angles, see `shear.spacing_of`.
    affine: `[4, 4]` float64, voxel index (z, y, x) to world in mm.
    axes: `axes[i]` is the file's axis behind axis i.
    steps: `steps[i]` is -1 where the two run against each other, else 1.
    readings: the affines of the file's own axes that the header allows, the
      one taken first; others only where it is at odds with itself.
    placed: whether the header says where the volume lies. Without, that is a
      convention, and nothing to hold against other files.
    oddities: a line for each thing in the header that is at odds.
  """

  shape: tuple[int, int, int]
  channels: int
  spacing: tuple[float, float, float]
  affine: np.ndarray
  axes: tuple[int, ...]
  steps: tuple[int, ...]
  readings: tuple[np.ndarray, ...]
  placed: bool = True
  oddities: tuple[str, ...] = ()


def grid_of(
  affine: np.ndarray, shape: tuple[int, ...], channels: int = 1
) -> Grid:
  """Returns the grid of a file's own axes that `affine` takes to mm.

  Args:
    affine: `[4, 4]`, three axes that span a space.
    shape: three sizes, in the order of the file.
    channels: number of them.
  """
  orientation = nib.io_orientation(affine)
  axes = tuple(orientation[:, 0].tolist().index(i) for i in _WORLD_AXES)
  steps = tuple(
    int(orientation[axis, 1]) * direction
    for axis, direction in zip(axes, _DIRECTIONS, strict=True)
  )
  to_file = np.zeros((4, 4))
  to_file[3, 3] = 1
  for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
    to_file[axis, i] = step
    to_file[axis, 3] = shape[axis] - 1 if step < 0 else 0
  inside = affine @ to_file
  spacing = spacing_of(affine)
  return Grid(
    shape=tuple(shape[axis] for axis in axes),
    channels=channels,
    spacing=tuple(spacing[axis] for axis in axes),
    affine=inside + 0.0,  # no -0.0
    axes=axes,
    steps=steps,
    readings=(affine,),
  )


def read_grid(
  path: pathlib.Path,
  header: nib.Nifti1Header,
  shape: tuple[int, ...],
  channels: int,
) -> Grid:
  """Returns the geometry of a file.

  Args:
    path: for messages.
    header: as stored.
    shape: three sizes, in the order of the file.
    channels: number of them.

  Raises:
    InputError: the header says no sizes or directions that can be used.
  """
  with np.errstate(all='ignore'):  # numbers of any size are looked at below
    unit, oddities = _unit(path, header)
    readings, placed, more = _readings(path, header)
    for affine in readings:
      affine[:3] *= unit
    return _checked(
      path,
      readings,
      shape,
      channels,
      placed=placed,
      oddities=(*oddities, *more),
    )


def read_affine(
  path: pathlib.Path,
  affine: np.ndarray,
  shape: tuple[int, ...],
  channels: int,
  *,
  name: str,
  placed: bool,
  oddities: Iterable[str] = (),
) -> Grid:
  """Returns the geometry of a file whose header says it once.

  Args:
    path: for messages.
    affine: `[4, 4]`, from the file's own axes to mm.
    shape: three sizes, in the order of the file.
    channels: number of them.
    name: of what the header calls it, for messages.
    placed: see `Grid`.
    oddities: lines that are known of already.

  Raises:
    InputError: it says no sizes or directions that can be used.
  """
  with np.errstate(all='ignore'):  # numbers of any size are looked at
    if not _is_usable(affine):
      raise _unusable(path, name, affine)
    return _checked(
      path, [affine], shape, channels, placed=placed, oddities=oddities
    )


def _checked(
  path: pathlib.Path,
  readings: list[np.ndarray],
  shape: tuple[int, ...],
  channels: int,
  *,
  placed: bool,
  oddities: Iterable[str],
) -> Grid:
  """Returns the grid of affines in mm, if something real can have them."""
  _check_extent(path, readings[0])
  if (skew := off_right_angles(readings[0])) > SKEW:
    line = (
      f'{path}: its axes are {skew:.3g} degrees off right angles; networks see '
      'it resampled to right ones, and distances between surfaces are measured '
      'as if they were'
    )
    oddities = (*oddities, line)
  return grid_of(readings[0], shape, channels)._replace(
    readings=tuple(readings), placed=placed, oddities=tuple(oddities)
  )


def to_file_order(array: np.ndarray, grid: Grid) -> np.ndarray:
  """Returns `array [z, y, x, ...]` seen along the axes of the file."""
  array = array[tuple(slice(None, None, step) for step in grid.steps)]
  return array.transpose(*np.argsort(grid.axes), *range(3, array.ndim))


def from_file_order(array: np.ndarray, grid: Grid) -> np.ndarray:
  """Returns an array in the file's own axes seen along `[z, y, x, ...]`."""
  array = array.transpose(*grid.axes, *range(3, array.ndim))
  return array[tuple(slice(None, None, step) for step in grid.steps)]


def file_shape(grid: Grid) -> tuple[int, ...]:
  """Returns the sizes of the three axes in the order of the file."""
  return tuple(grid.shape[i] for i in np.argsort(grid.axes))


def times(numbers: Iterable[float]) -> str:
  """Returns, say, 512x512x80."""
  return 'x'.join(f'{number:.6g}' for number in numbers)


def rows(matrix: np.ndarray) -> str:
  """Returns a matrix in one line."""
  lines = (' '.join(f'{value:.6g}' for value in row) for row in matrix)
  return '[' + '; '.join(lines) + ']'


def _readings(
  path: pathlib.Path, header: nib.Nifti1Header
) -> tuple[list[np.ndarray], bool, list[str]]:
  """Returns the affines of the file's axes, if they are a place, oddities."""
  zooms = np.asarray(header['pixdim'][1:4], np.float64)
  sizes = np.where(np.isfinite(zooms) & (zooms != 0), np.abs(zooms), np.nan)
  sform, qform = _sform(header), _qform(header, sizes)
  oddities = []
  if sform is not None and not _is_usable(sform):
    if qform is None or not _is_usable(qform):
      raise _unusable(path, 'sform', sform)
    oddities.append(
      f'{path}: its sform {rows(sform[:3])} is no geometry; the qform is taken'
    )
    sform = None
  if np.isnan(sizes).any():
    if sform is None:
      raise InputError(
        f'{path}: spacing {times(zooms)} (pixdim); allowed are sizes above 0 mm'
      )
    oddities.append(
      f'{path}: spacing {times(zooms)} in pixdim; the sizes are taken from the '
      f'sform, {times(_lengths(sform))}'
    )
    return [sform], True, oddities
  if (zooms < 0).any():
    oddities.append(
      f'{path}: spacing {times(zooms)} in pixdim; {times(sizes)} is taken'
    )
  if sform is None and qform is None:
    base = _without_place(header, sizes)
    return [base], False, oddities
  if qform is not None and not _is_usable(qform):
    if sform is None:
      raise _unusable(path, 'qform', qform)
    oddities.append(f'{path}: its qform is no rotation; the sform is taken')
    qform = None
  if sform is None:
    return [qform], True, oddities
  readings = [sform]
  if not np.allclose(_lengths(sform), sizes, rtol=_SAME_SIZE, atol=0):
    oddities.append(
      f'{path}: voxels of {times(_lengths(sform))} mm in the sform, of '
      f'{times(sizes)} mm in pixdim; the sizes are taken from pixdim, the '
      'directions from the sform'
    )
    mended = sform.copy()
    mended[:3, :3] *= sizes / _lengths(sform)
    readings.insert(0, mended)
  if qform is not None and (gap := _disagreement(readings[0], qform)):
    oddities.append(
      f'{path}: sform and qform differ, {gap}; the sform is taken'
    )
    readings.append(qform)
  return readings, True, oddities


def _sform(header: nib.Nifti1Header) -> np.ndarray | None:
  if header['sform_code'] <= 0:
    return None
  affine = np.eye(4)
  affine[:3] = [header[f'srow_{axis}'] for axis in 'xyz']
  return affine


def _qform(header: nib.Nifti1Header, sizes: np.ndarray) -> np.ndarray | None:
  if header['qform_code'] <= 0:
    return None
  mended = header.copy()
  mended['pixdim'][1:4] = sizes
  if mended['pixdim'][0] not in (-1, 1):
    mended['pixdim'][0] = 1  # as the standard says for 0
  affine = np.full((4, 4), np.nan)
  with contextlib.suppress(ValueError):  # the quaternion is no rotation
    affine = np.asarray(mended.get_qform(), np.float64)
  return affine


def _without_place(header: nib.Nifti1Header, sizes: np.ndarray) -> np.ndarray:
  """Returns the affine that goes without saying: to Left, Anterior, Superior.

  That of the Analyze format, as nibabel has it.
  """
  affine = np.diag([*(sizes * (-1, 1, 1)), 1.0])
  centre = (np.asarray(header['dim'][1:4], np.float64) - 1) / 2
  affine[:3, 3] = -affine[:3, :3] @ centre
  return affine


def _is_usable(affine: np.ndarray) -> bool:
  """Returns whether three axes span a space."""
  lengths = _lengths(affine)
  if not np.isfinite(affine).all() or not (lengths > 0).all():
    return False
  directions = affine[:3, :3] / lengths
  return bool(
    np.isfinite(directions).all()
    and np.abs(np.linalg.det(directions)) >= 0.01
    and np.isfinite(nib.io_orientation(affine)).all()
  )


def _unusable(path: pathlib.Path, name: str, affine: np.ndarray) -> InputError:
  return InputError(
    f'{path}: no usable geometry, its {name} is {rows(affine[:3])}; allowed '
    'are three axes that span a space, with sizes above 0 mm'
  )


def _check_extent(path: pathlib.Path, affine: np.ndarray) -> None:
  sizes = _lengths(affine)
  if not (sizes.min() >= _SMALLEST and sizes.max() <= _LARGEST):
    raise InputError(
      f'{path}: spacing {times(sizes)} mm; allowed are {_SMALLEST:g} to '
      f'{_LARGEST:g} mm'
    )
  if not np.abs(affine[:3, 3]).max() <= _FARTHEST:
    raise InputError(
      f'{path}: its first voxel lies at {times(affine[:3, 3])} mm; allowed is '
      f'up to {_FARTHEST:g} mm from the origin'
    )


def _unit(
  path: pathlib.Path, header: nib.Nifti1Header
) -> tuple[float, list[str]]:
  """Returns the header's unit in mm, and a line where that is unusual."""
  code = int(header['xyzt_units']) & 7
  if code == 0:  # unknown: so it is written where nobody thought of it
    return 1.0, []
  if code not in _UNITS:
    return 1.0, [
      f'{path}: no unit has the code {code} (xyzt_units); mm is taken'
    ]
  unit, name = _UNITS[code]
  sizes = np.abs(np.asarray(header['pixdim'][1:4], np.float64))
  if name == 'mm':
    return unit, []
  return unit, [
    f'{path}: its unit is the {name} (xyzt_units), so the voxels have '
    f'{times(sizes * unit)} mm'
  ]


def _disagreement(one: np.ndarray, other: np.ndarray) -> str:
  """Returns how two affines differ, or '' where they are the same."""
  directions = [affine[:3, :3] / _lengths(affine) for affine in (one, other)]
  angle = _degrees((directions[0] * directions[1]).sum(0)).max()
  gap = np.linalg.norm(one[:3, 3] - other[:3, 3])
  if angle <= _SAME_ANGLE and gap <= _SAME_PLACE * _lengths(one).min():
    return ''
  return f'the axes by {angle:.3g} degrees, the first voxel by {gap:.3g} mm'


def _degrees(cosines: np.ndarray) -> np.ndarray:
  return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def _lengths(affine: np.ndarray) -> np.ndarray:
  return np.linalg.norm(affine[:3, :3], axis=0)
