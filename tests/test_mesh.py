"""Surfaces around masks: closed, of the right volume, in the right place."""

import numpy as np
import pytest
import trimesh
from scipy import ndimage, spatial

from medseg_jax.clinic import mesh_files
from medseg_jax.clinic.mesh import (
  surface_of,
  surfaces_of_classes,
  volume_of,
)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = np.eye(4)
OBLIQUE[:3] = [[0.2, -0.1, 1.9, 30], [-0.7, 0.1, 0.6, -12], [0.1, 0.8, 0.3, 7]]


def ball(radius, centre, shape):
  grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
  return np.sqrt((grid**2).sum(0)) < radius


def noise(share):
  return np.random.default_rng(7).random((9, 10, 11)) < share


MASKS = {
  'one voxel': ball(0.5, (2, 2, 2), (5, 5, 5)),
  'a whole image': np.ones((4, 5, 6), bool),
  'one plane': np.ones((1, 5, 6), bool),
  'at the border': ball(5, (1, 4, 7), (8, 9, 9)),
  'hollow': ball(5, (6, 6, 6), (13,) * 3) & ~ball(2.5, (6, 6, 6), (13,) * 3),
  'contacts at corners': np.indices((5, 5, 5)).sum(0) % 2 == 0,
  'specks': noise(0.04),
  'sponge': noise(0.4),
  'holes': noise(0.93),
  # Smoothed in full, it would enclose too much wherever it is cut.
  'dense': np.random.default_rng(5).random((16, 17, 18)) < 0.7,
}


def solid(mesh):
  """Returns it as trimesh has it once equal points are one."""
  return trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)


@pytest.mark.parametrize('mirrored', [False, True])
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('name', MASKS)
def test_closed_outward_of_the_same_volume_and_near(name, soft, mirrored):
  mask = MASKS[name]
  affine = OBLIQUE.copy()
  if mirrored:
    affine[:3, 1] *= -1
  rng = np.random.default_rng(1)
  # Probabilities less those of the others; some contradict the mask.
  margin = np.where(mask, 1, -1) * rng.uniform(-0.1, 1, mask.shape)
  mesh = surface_of(mask, affine, margin=margin if soft else None)
  found = solid(mesh)
  assert found.is_watertight and found.is_winding_consistent
  voxel = abs(np.linalg.det(affine[:3, :3]))
  # Positive, so outward, of each component and not of their sum alone.
  labels, number = ndimage.label(mask, np.ones((3, 3, 3)))
  sizes = sorted(np.bincount(labels.ravel())[1:] * voxel)
  parts = _volumes_of_parts(mesh, labels, affine)
  assert len(parts) == number
  np.testing.assert_allclose(sorted(parts), sizes, rtol=0.01)
  assert volume_of(mesh) == pytest.approx(found.volume, rel=1e-6)
  centres = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
  centres = centres @ LPS[:3, :3]
  distance, _ = spatial.cKDTree(centres).query(mesh.vertices)
  assert distance.max() <= _diagonal(affine)
  lengths = np.linalg.norm(mesh.normals, axis=1)
  np.testing.assert_allclose(lengths, 1, atol=1e-6)


@pytest.mark.parametrize('at_border', [False, True])
def test_a_class_is_cut_where_another_is_as_probable(at_border):
  """Radii from probabilities are closer than a voxel; so are those of a box."""
  shape, radius = (24, 26, 28), 7.3
  centre = np.array([4.2 if at_border else 12.1, 12.4, 13.7])
  grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
  inside = 1 / (1 + np.exp(np.sqrt((grid**2).sum(0)) - radius))
  probs = np.stack([0.7 * (1 - inside), inside, 0.3 * (1 - inside)], -1)
  label = probs.argmax(-1).astype(np.int16)
  affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # to itself in LPS
  [soft] = surfaces_of_classes(label, 1, affine, probs=probs)
  [hard] = surfaces_of_classes(label, 1, affine)
  # Where 0.7 (1 - p) = p, and a bit beyond where the volume asks for it.
  expected = radius - np.log(0.7)
  spread = {}
  for name, mesh in (('soft', soft), ('hard', hard)):
    assert solid(mesh).is_watertight
    assert volume_of(mesh) == pytest.approx((label == 1).sum(), rel=0.01)
    free = mesh.vertices[:, 0] > 0.6  # not where the image ends
    distance = np.linalg.norm(mesh.vertices[free] - centre, axis=1)
    spread[name] = np.abs(distance - expected).max()
  assert spread['soft'] < 0.12 < spread['hard'] < 1
  _, nothing = surfaces_of_classes(label * 0, 2, affine, probs=probs)
  assert not len(nothing.vertices)


def _diagonal(affine):
  """Returns the longest one of a voxel."""
  signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1)
  return np.linalg.norm(affine[:3, :3] @ signs, axis=0).max()


def _volumes_of_parts(mesh, labels, affine):
  """Returns the volume around each component, told by the nearest voxel."""
  voxels = np.argwhere(labels)
  centres = (voxels @ affine[:3, :3].T + affine[:3, 3]) @ LPS[:3, :3]
  corners = mesh.vertices[mesh.faces]
  _, nearest = spatial.cKDTree(centres).query(corners.mean(1))
  graph = trimesh.graph.connected_component_labels(
    trimesh.graph.face_adjacency(mesh.faces), len(mesh.faces)
  )
  of_voxel = labels[tuple(voxels.T)]
  volumes = {}
  for surface in np.unique(graph):
    faces = graph == surface
    component = np.bincount(of_voxel[nearest[faces]]).argmax()
    part = np.einsum(
      'ij,ij->', corners[faces, 0],
      np.cross(corners[faces, 1], corners[faces, 2]),
    ) / 6  # fmt: skip
    volumes[component] = volumes.get(component, 0) + part
  return [*volumes.values()]


@pytest.mark.parametrize('soft', [False, True])
def test_normals_of_a_sphere(soft):
  for centre in ((19.7, 19.7, 19.7), (20, 20, 20), (19.5, 19.2, 19.8)):
    grid = np.indices((40, 40, 40)) - np.reshape(centre, (3, 1, 1, 1))
    distance = np.sqrt((grid**2).sum(0))
    margin = np.tanh((15 - distance) / 2) if soft else None
    mesh = surface_of(distance < 15, np.eye(4), margin=margin)
    outward = mesh.vertices @ LPS[:3, :3] - centre
    radius = np.linalg.norm(outward, axis=1)
    cosine = (outward * (mesh.normals @ LPS[:3, :3])).sum(1) / radius
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 8
    assert np.abs(radius - 15).max() < 0.5


def test_small_balls_keep_their_volume_and_an_empty_mask_has_none():
  for radius in (1.2, 2, 4):
    mask = ball(radius, (5.2, 5, 4.9), (11, 11, 11))
    mesh = surface_of(mask, np.diag([1, 1, 3.0, 1]))
    assert volume_of(mesh) == pytest.approx(3 * mask.sum(), rel=0.01)
  empty = surface_of(np.zeros((3, 4, 5), bool), np.eye(4))
  assert empty.vertices.shape == empty.faces.shape == (0, 3)
  assert volume_of(empty) == 0


def test_probabilities_place_the_surface_between_voxels():
  # A plate whose upper side is nearer to one voxel than to the next.
  mask = np.zeros((12, 12, 8), bool)
  mask[:, :, 2:5] = True
  height = np.broadcast_to(np.arange(8.0), mask.shape)
  margin = np.minimum(height - 1.3, 4.3 - height).clip(-1, 1)
  mesh = surface_of(mask, np.eye(4), margin=margin)
  inner = (np.abs(mesh.vertices[:, :2] + 5.5) < 3).all(1)
  z = mesh.vertices[inner, 2]
  # The plate is as thick as its voxels, but moved.
  low, high = np.median(z[z < 3]), np.median(z[z > 3])
  assert (low + high) / 2 == pytest.approx(2.8, abs=0.02)
  plain = surface_of(mask, np.eye(4))
  z = plain.vertices[(np.abs(plain.vertices[:, :2] + 5.5) < 3).all(1), 2]
  assert (np.median(z[z < 3]) + np.median(z[z > 3])) / 2 == pytest.approx(3)


def test_mistakes_are_told():
  mask = np.ones((2, 3, 4), bool)
  for arguments in (
    (mask[0], np.eye(4)), (mask, np.eye(3)), (mask, np.diag([1, 0, 1, 1])),
  ):  # fmt: skip
    with pytest.raises(ValueError, match='must be'):
      surface_of(*arguments)
  with pytest.raises(ValueError, match='margin'):
    surface_of(mask, np.eye(4), margin=np.ones((2, 3, 5)))


def test_files_hold_the_surface_and_its_space(tmp_path):
  meshes = {
    'left': surface_of(MASKS['hollow'], OBLIQUE),
    'a\nb': surface_of(MASKS['specks'], OBLIQUE),
    'none': surface_of(np.zeros((2, 2, 2), bool), OBLIQUE),
  }
  mesh_files.write_stl(tmp_path / 'x.stl', meshes['left'])
  content = (tmp_path / 'x.stl').read_bytes()
  assert b'SPACE=LPS' in content[:80] and not content.startswith(b'solid')
  found = trimesh.load_mesh(tmp_path / 'x.stl')
  assert found.is_watertight
  assert found.volume == pytest.approx(volume_of(meshes['left']), rel=1e-5)
  lowest, highest = found.bounds
  np.testing.assert_allclose(lowest, meshes['left'].vertices.min(0), atol=1e-4)
  np.testing.assert_allclose(highest, meshes['left'].vertices.max(0), atol=1e-4)
  colours = [(255, 0, 9), (1, 2, 3), (4, 5, 6)]
  mesh_files.write_ply(tmp_path / 'scene.ply', meshes, colours)
  content = (tmp_path / 'scene.ply').read_bytes()
  assert b'SPACE=LPS\n' in content and b'comment class a b 1 2 3\n' in content
  scene = trimesh.load_mesh(tmp_path / 'scene.ply', process=False)
  number = len(meshes['left'].vertices)
  vertices = np.concatenate([mesh.vertices for mesh in meshes.values()])
  np.testing.assert_allclose(scene.vertices, vertices, atol=1e-4)
  np.testing.assert_array_equal(
    scene.visual.vertex_colors[[0, number - 1, number], :3],
    [colours[0], colours[0], colours[1]],
  )
  assert scene.volume == pytest.approx(
    sum(map(volume_of, meshes.values())), rel=1e-5
  )
  mesh_files.write_stl(tmp_path / 'none.stl', meshes['none'])
  assert len((tmp_path / 'none.stl').read_bytes()) == 84


def test_names_of_files_are_apart():
  names = ['a/b', 'a b', 'Lung', 'lung', '..', 'Größe', 'x' * 300]
  files = mesh_files.file_names(names)
  assert files[:5] == [
    'a_b.stl', 'a_b_2.stl', 'Lung.stl', 'lung_4.stl', 'class.stl',
  ]  # fmt: skip
  assert files[5] == 'Größe.stl' and len(files[6]) == 84
  assert len({name.casefold() for name in files}) == len(names)
