"""What is odd about where the volumes of a case lie, from their headers alone.

A run tells it when it opens the files, whether it reads their voxels itself,
finds them prepared or has a plan already.
"""

import contextlib

import nibabel as nib

from medseg_jax.data.formats import nifti
from medseg_jax.data.sources.volume_files import VolumeFiles
from medseg_jax.runtime.errors import InputError

_SIDES = {'L': 'Left', 'P': 'Posterior', 'A': 'Anterior', 'S': 'Superior'}


def find_oddities(
  files: VolumeFiles, tolerance: float = nifti.TOLERANCE
) -> tuple[str, ...]:
  """Returns a line for each thing at odds in the headers of a case.

  What is an error there is not among them: the reading of the case tells it.

  Args:
    files: of the case.
    tolerance: how far channels and label may lie off, in voxels.
  """
  grids = {}
  for path in filter(None, (*files.images, files.label)):
    with contextlib.suppress(InputError):
      grids[path] = nifti.read_header(path)
  lines = [line for grid in grids.values() for line in grid.oddities]
  image = files.images[0]
  to = grids.pop(image, None)
  if to is None:
    return tuple(lines)
  if not to.placed:
    sides = ', '.join(_SIDES[side] for side in nib.aff2axcodes(to.readings[0]))
    lines.append(
      f'{image}: its header says no position or orientation (of NIfTI: sform '
      f'and qform codes 0); the axes are taken to run to {sides}'
    )
  for path, grid in grids.items():
    with contextlib.suppress(InputError):
      gap = nifti.gap_between(
        grid, to, what=str(path), where=str(image), tolerance=tolerance
      )
      lines += [gap] * bool(gap)
  return tuple(lines)
