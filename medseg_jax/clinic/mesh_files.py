"""Surfaces as files: STL, one for each, and PLY, all of a scene in colour.

Both say in their header that the coordinates are LPS, as 3D Slicer and others
read it; without it they would take them as they please.
"""

import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from medseg_jax.clinic.mesh import Mesh

_SPACE = 'SPACE=LPS'
_STL = np.dtype([('floats', '<f4', (4, 3)), ('attribute', '<u2')])
_PLY_VERTEX = np.dtype([('floats', '<f4', 6), ('colour', 'u1', 3)])
_PLY_FACE = np.dtype([('count', 'u1'), ('vertices', '<i4', 3)])


def write_stl(path: str | os.PathLike, mesh: Mesh) -> None:
  """Writes a surface as binary STL, mm.

  Args:
    path: of the file, which is overwritten.
    mesh: one without faces gives a file without triangles.
  """
  corners = mesh.vertices[mesh.faces]  # [F, 3, 3]
  normals = np.cross(
    corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
  )
  lengths = np.linalg.norm(normals, axis=1, keepdims=True)
  triangles = np.zeros(len(corners), _STL)
  triangles['floats'][:, 0] = normals / np.where(lengths > 0, lengths, 1)
  triangles['floats'][:, 1:] = corners
  with open(path, 'wb') as file:
    file.write(f'medseg_jax {_SPACE}'.encode().ljust(80))
    file.write(np.array(len(corners), '<u4').tobytes())
    file.write(triangles.tobytes())


def write_ply(
  path: str | os.PathLike,
  meshes: Mapping[str, Mesh],
  colours: Sequence[tuple[int, int, int]],
) -> None:
  """Writes surfaces as one binary PLY, mm, vertices coloured.

  Args:
    path: of the file, which is overwritten.
    meshes: by name; the names stand in comments, in order.
    colours: of each, red, green, blue, 0..255.
  """
  vertices, faces, first = [], [], 0
  for mesh, colour in zip(meshes.values(), colours, strict=True):
    vertex = np.zeros(len(mesh.vertices), _PLY_VERTEX)
    vertex['floats'] = np.concatenate([mesh.vertices, mesh.normals], 1)
    vertex['colour'] = colour
    face = np.zeros(len(mesh.faces), _PLY_FACE)
    face['count'], face['vertices'] = 3, mesh.faces + first
    vertices.append(vertex)
    faces.append(face)
    first += len(vertex)
  header = [
    'ply',
    'format binary_little_endian 1.0',
    f'comment medseg_jax {_SPACE}',
    *(
      f'comment class {_one_line(name)} {" ".join(map(str, colour))}'
      for name, colour in zip(meshes, colours, strict=True)
    ),
    f'element vertex {first}',
    *(f'property float {name}' for name in ('x', 'y', 'z', 'nx', 'ny', 'nz')),
    *(f'property uchar {name}' for name in ('red', 'green', 'blue')),
    f'element face {sum(map(len, faces))}',
    'property list uchar int vertex_indices',
    'end_header',
    '',
  ]
  with open(path, 'wb') as file:
    file.write('\n'.join(header).encode('ascii', 'backslashreplace'))
    for array in (*vertices, *faces):
      file.write(array.tobytes())


def file_names(classes: Sequence[str], suffix: str = '.stl') -> list[str]:
  """Returns a file name for each class, all different, also to Windows.

  Args:
    classes: names without the background.
    suffix: of the files.
  """
  names: list[str] = []
  for i, name in enumerate(classes):
    stem = re.sub(r'[^\w.+-]+', '_', name).strip('._')[:80] or 'class'
    taken = {other.casefold() for other in names}
    if f'{stem}{suffix}'.casefold() in taken:
      stem = f'{stem}_{i + 1}'
    names.append(f'{stem}{suffix}')
  return names


def _one_line(name: str) -> str:
  return ' '.join(name.split())
