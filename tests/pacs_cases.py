"""Archives made for tests: what they answer is chosen."""

import contextlib
import http.server
import socket
import threading
import time

import pydicom
from pynetdicom import AE, evt

from medseg_jax.pacs import address

SEG = '1.2.840.10008.5.1.4.1.1.66.4'
RTSTRUCT = '1.2.840.10008.5.1.4.1.1.481.3'
REPORT = '1.2.840.10008.5.1.4.1.1.88.34'
JSON = 'application/dicom+json'


@contextlib.contextmanager
def node(statuses, classes=(SEG, RTSTRUCT, REPORT), deaf=None):
  """Yields the address of an archive, and what it was asked to keep.

  Args:
    statuses: what it answers, by SOP class; a number, or seconds it takes.
    classes: that it takes.
    deaf: an event until which it reads nothing of what it is sent.
  """
  asked = []

  def keep(event):
    kind = str(event.dataset.SOPClassUID)
    asked.append(kind)
    status = statuses.get(kind, 0)
    if isinstance(status, float):
      time.sleep(status)
      return 0
    if status == 0xA700:
      answer = pydicom.Dataset()
      answer.Status, answer.ErrorComment = status, 'disk 7 is full'
      return answer
    return status

  def read(event):
    if deaf and event.assoc.is_established:
      deaf.wait(20)

  entity = AE(ae_title='ARCHIVE')
  for uid in ('1.2.840.10008.1.1', *classes):
    entity.add_supported_context(uid)
  server = entity.start_server(
    ('127.0.0.1', 0),
    block=False,
    evt_handlers=[(evt.EVT_C_STORE, keep), (evt.EVT_DATA_RECV, read)],
  )
  try:
    port = server.socket.getsockname()[1]
    yield address.target(f'dicom://ARCHIVE@127.0.0.1:{port}'), asked
  finally:
    server.shutdown()


@contextlib.contextmanager
def service(answer):
  """Yields the address of a service of DICOMweb, and what it was asked.

  Args:
    answer: returns status, type and content for a method and a path.
  """
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
      size = int(self.headers.get('Content-Length') or 0)
      self.rfile.read(size)
      asked.append((self.command, self.path, self.headers['Authorization']))
      status, kind, content = answer(self.command, self.path)
      self.send_response(status)
      self.send_header('Content-Type', kind)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *args):
      del args

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.05,))
  thread.start()
  try:
    yield f'dicomweb://127.0.0.1:{server.server_port}/root', asked
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


@contextlib.contextmanager
def silence():
  """Yields the port of one who listens and says nothing."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    yield server.getsockname()[1]
