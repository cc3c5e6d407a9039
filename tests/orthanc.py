"""A real archive for tests: Orthanc on this machine alone, and its plugin."""

import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

_PLUGIN = pathlib.Path('/usr/share/orthanc/plugins/libOrthancDicomWeb.so')
_SECONDS = 60  # of a busy machine


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


class Orthanc:
  """Where one listens, and what it says of what it has."""

  def __init__(self, dicom, http):
    self.dicom, self.http = dicom, http
    self.node = f'dicom://ORTHANC@127.0.0.1:{dicom}'
    self.web = f'dicomweb://127.0.0.1:{http}/dicom-web'

  def ask(self, path, method='GET'):
    request = urllib.request.Request(
      f'http://127.0.0.1:{self.http}{path}', method=method
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
      return answer.read()

  def instances(self):
    return json.loads(self.ask('/instances'))

  def clear(self):
    for name in self.instances():
      self.ask(f'/instances/{name}', 'DELETE')

  def count(self, name):
    return int(json.loads(self.ask('/statistics'))[f'Count{name}'])


@contextlib.contextmanager
def running(folder, **more):
  """Yields an empty archive that keeps its files in a folder."""
  program = shutil.which('Orthanc', path='/usr/sbin:/usr/bin:/usr/local/bin')
  if program is None or not _PLUGIN.exists():
    pytest.skip('Orthanc (Debian: orthanc, orthanc-dicomweb) is not installed')
  found = Orthanc(free_port(), free_port())
  config = {
    'Name': 'test',
    'StorageDirectory': str(folder / 'storage'),
    'IndexDirectory': str(folder / 'storage'),
    'Plugins': [str(_PLUGIN)],
    'DicomAet': 'ORTHANC',
    'DicomCheckCalledAet': True,
    'DicomPort': found.dicom,
    'HttpPort': found.http,
    'HttpBindAddresses': ['127.0.0.1'],
    'RemoteAccessAllowed': False,
    'AuthenticationEnabled': False,
    'DicomWeb': {'Enable': True, 'Root': '/dicom-web/'},
    **more,
  }
  path = folder / 'orthanc.json'
  path.write_text(json.dumps(config))
  with open(folder / 'orthanc.log', 'wb') as log:
    process = subprocess.Popen([program, path], stdout=log, stderr=log)
    try:
      _wait(process, found, folder / 'orthanc.log')
      yield found
    finally:
      process.terminate()
      try:
        process.wait(timeout=_SECONDS)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(process, found, log):
  end = time.monotonic() + _SECONDS
  while time.monotonic() < end and process.poll() is None:
    with contextlib.suppress(OSError):
      for port in (found.dicom, found.http):
        socket.create_connection(('127.0.0.1', port), 1).close()
      return
    time.sleep(0.05)
  raise AssertionError(f'Orthanc does not start: {log.read_text()[-2000:]}')
