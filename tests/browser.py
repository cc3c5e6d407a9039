"""A page in Debian's Chromium, headless, driven as DevTools does."""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

import pytest

_FLAGS = (
  *('--headless', '--no-sandbox', '--disable-quic', '--no-first-run'),
  *('--disable-background-networking', '--disable-component-update'),
  *('--disable-sync', '--use-gl=angle', '--use-angle=swiftshader'),
  *('--enable-unsafe-swiftshader', '--hide-scrollbars'),
  *('--remote-debugging-pipe', '--disable-dev-shm-usage'),
)
_WAIT_S = 120.0  # a busy machine needs minutes for what takes seconds


@contextlib.contextmanager
def browsing(temp: pathlib.Path):
  """Yields a `Page`, without anything in it; skips where there is no browser.

  Args:
    temp: a folder for the browser's own files.
  """
  program = shutil.which('chromium')
  if program is None:
    pytest.skip('no chromium on this machine (apt-get install chromium)')
  theirs_in, ours_out = os.pipe()
  ours_in, theirs_out = os.pipe()
  # It listens on descriptor 3 and answers on 4.
  line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
  words = [program, *_FLAGS, f'--user-data-dir={temp / "browser"}']
  process = subprocess.Popen(
    ['bash', '-c', line, 'bash', *words, 'about:blank'],
    pass_fds=(theirs_in, theirs_out),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  os.close(theirs_in)
  os.close(theirs_out)
  try:
    yield Page(ours_in, ours_out)
  finally:
    os.close(ours_out)
    os.close(ours_in)
    process.terminate()
    try:
      process.wait(20)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


class Page:
  """One tab.

  Attributes:
    complaints: what the console has of errors, and exceptions, as text.
    requests: addresses that were asked for, but for those within the page.
  """

  def __init__(self, reader: int, writer: int):
    self._reader, self._writer = reader, writer
    self._left, self._number, self._session = b'', 0, None
    self.complaints: list[str] = []
    self.requests: list[str] = []
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self._session = self.call(
      'Target.attachToTarget', targetId=target, flatten=True
    )['sessionId']
    for domain in ('Runtime', 'Log', 'Network', 'Page'):
      self.call(f'{domain}.enable')

  def call(self, method: str, **parameters) -> dict:
    """Returns what a command of the DevTools protocol returns."""
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': parameters}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._writer, json.dumps(message).encode() + b'\0')
    end = time.monotonic() + _WAIT_S
    while True:
      answer = self._next(end)
      if answer.get('id') == self._number:
        assert 'error' not in answer, answer['error']
        return answer['result']

  def _next(self, end: float) -> dict:
    while b'\0' not in self._left:
      ready, _, _ = select.select(
        [self._reader], [], [], max(end - time.monotonic(), 0)
      )
      assert ready, 'the browser does not answer'
      more = os.read(self._reader, 1 << 20)
      assert more, 'the browser has ended'
      self._left += more
    text, _, self._left = self._left.partition(b'\0')
    message = json.loads(text)
    method, told = message.get('method'), message.get('params', {})
    if method == 'Network.requestWillBeSent':
      address = told['request']['url']
      if not address.startswith('data:'):
        self.requests.append(address)
    elif method == 'Runtime.exceptionThrown':
      self.complaints.append(json.dumps(told['exceptionDetails']))
    elif method == 'Log.entryAdded' and told['entry']['level'] == 'error':
      self.complaints.append(json.dumps(told['entry']))
    elif method == 'Runtime.consoleAPICalled' and told['type'] == 'error':
      self.complaints.append(json.dumps(told['args']))
    return message

  def open(self, path: pathlib.Path) -> None:
    """Opens a file and waits until its script says that it is ready."""
    self.call('Page.navigate', url=path.absolute().as_uri())
    self.wait('document.body && document.body.dataset.ready')

  def run(self, script: str):
    """Returns what an expression is, waiting for promises."""
    answer = self.call(
      'Runtime.evaluate',
      expression=script,
      awaitPromise=True,
      returnByValue=True,
    )
    assert 'exceptionDetails' not in answer, answer['exceptionDetails']
    return answer['result'].get('value')

  def wait(self, script: str):
    """Returns what an expression is once that is true."""
    end = time.monotonic() + _WAIT_S
    while not (value := self.run(script)):
      assert time.monotonic() < end, f'never true: {script}'
      time.sleep(0.05)
    return value

  def press(self, key: str, code: int = 0, text: str = '') -> None:
    """Presses a key, such as 'ArrowUp', on what has the focus."""
    told = dict(key=key, windowsVirtualKeyCode=code, text=text)
    self.call('Input.dispatchKeyEvent', type='keyDown', **told)
    self.call('Input.dispatchKeyEvent', type='keyUp', key=key)

  def mouse(self, kind: str, x: float, y: float, **more) -> None:
    """Sends 'mousePressed', 'mouseMoved', 'mouseReleased' or 'mouseWheel'."""
    self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, **more)

  def look(self, *, width: int = 1200, height: int = 900, dark: bool = False):
    """Sets the size of the window and the theme."""
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 500,
    )
    theme = {
      'name': 'prefers-color-scheme',
      'value': 'dark' if dark else 'light',
    }
    self.call('Emulation.setEmulatedMedia', features=[theme])

  def screenshot(self, path: pathlib.Path, *, whole: bool = False) -> None:
    """Writes a PNG of the window, or of the whole page."""
    answer = self.call(
      'Page.captureScreenshot', captureBeyondViewport=whole, format='png'
    )
    path.write_bytes(base64.b64decode(answer['data']))
