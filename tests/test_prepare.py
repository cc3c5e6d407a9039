"""The data of a config into the cache: where it lies, what is said of it."""

import pytest
from conftest import write_volumes
from data_cases import assert_one_line
from small import load, shrink

from medseg_jax import prepare
from medseg_jax.experiment import opening
from medseg_jax.runtime.errors import InputError


def prepared(root, workdir, cache_dir):
  config = shrink(load('auto_cpu'), path=root)
  config.data.cache_dir = str(cache_dir)
  config, sources = opening.open_run(config, workdir)
  return prepare.prepare(config, sources)


def test_a_cache_folder_that_is_named_needs_no_home(tmp_path, no_home):
  root = write_volumes(tmp_path / 'Balls', 5)
  cache = prepared(root, tmp_path / 'run', tmp_path / 'cache')
  assert cache.folder.parent == tmp_path / 'cache'
  with pytest.raises(InputError) as error:
    prepared(root, tmp_path / 'run', '')
  assert_one_line(error, 'HOME', 'set config.data.cache_dir')
