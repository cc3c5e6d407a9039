"""What names an archive on the command line, and never who asks it.

    dicom://[CALLING@]CALLED@HOST:PORT            DICOM's own protocol
    dicomweb://HOST[:PORT][/ROOT]                 DICOMweb over HTTP
    dicomwebs://HOST[:PORT][/ROOT]                DICOMweb over HTTPS

CALLED and CALLING are the application entity titles of the archive and of this
program. A series to read goes on as its resource does (PS3.18, section 10.4):
`/studies/STUDY` or `/studies/STUDY/series/SERIES`, with UIDs.
"""

import re
import string
import urllib.parse
from typing import Any, NamedTuple

from medseg_jax.runtime.errors import InputError, quote

CALLING = 'MEDSEG_JAX'  # where none is named
_DICOM = 'dicom://[CALLING@]CALLED@HOST:PORT'
_WEB = 'dicomweb://HOST[:PORT][/ROOT], or dicomwebs:// over HTTPS'
_SERIES = (
  'dicomweb://HOST[:PORT][/ROOT]/studies/STUDY[/series/SERIES], or '
  'dicomwebs:// over HTTPS'
)
_WEBS = ('dicomweb://', 'dicomwebs://')
_SECRETS = (
  'a name and a password have no place in an address, which others can see; '
  'set MEDSEG_PACS_USER and MEDSEG_PACS_PASSWORD, or write them to ~/.netrc'
)
_LONGEST_TITLE = 16  # PS3.5, table 6.2-1
_HOST = re.compile(r'[A-Za-z0-9._-]+')
_UID = re.compile(r'[0-9]+(\.[0-9]+)*')
_LONGEST_UID = 64
_RESOURCE = re.compile(r'(.*?)/studies/([^/]+)(?:/series/([^/]+))?/?')


class Node(NamedTuple):
  """An application entity that DICOM objects can be sent to.

  Attributes:
    called: its title.
    calling: the title of this program.
    host: its name or IPv4 address.
    port: from 1 to 65535.
  """

  called: str
  calling: str
  host: str
  port: int

  @property
  def name(self) -> str:
    """What it is called in messages and lists."""
    called = urllib.parse.quote(self.called, safe=' ')
    return f'dicom://{called}@{self.host}:{self.port}'


class Web(NamedTuple):
  """A server of DICOMweb, and perhaps what of it is meant.

  Attributes:
    secure: whether over HTTPS.
    place: host, and port where one is named: 'localhost:8042'.
    root: path of the service, '' or beginning with a slash.
    study: UID, '' for none.
    series: UID, '' for none.
  """

  secure: bool
  place: str
  root: str
  study: str = ''
  series: str = ''

  @property
  def url(self) -> str:
    """Of the service."""
    return f'http{"s" * self.secure}://{self.place}{self.root}'

  @property
  def name(self) -> str:
    """What the service is called in messages and lists."""
    return f'dicomweb{"s" * self.secure}://{self.place}{self.root}'


def is_address(text: str) -> bool:
  """Returns whether a text is an address of any kind, and no path."""
  return re.match('[A-Za-z][A-Za-z0-9+.-]*://', text) is not None


def target(text: str) -> Node | Web:
  """Returns what `--send` names.

  Raises:
    InputError: nothing that objects could be sent to.
  """
  if text.startswith(_WEBS):
    found = _web('--send', text, _WEB)
    if re.search('/(studies|series|instances)(/|$)', found.root):
      raise InputError(
        f'--send={_shown(text)}: goes too far; allowed is the root of the '
        f'service, {_WEB}'
      )
    return found
  scheme, _, rest = text.partition('://')
  if scheme != 'dicom' or not rest:
    raise InputError(f'--send={_shown(text)}: allowed are {_DICOM}, {_WEB}')
  titles, _, place = rest.rpartition('@')
  if ':' in titles:
    raise InputError(f'--send={_shown(text)}: {_SECRETS}')
  *calling, called = [
    urllib.parse.unquote(t).strip() for t in titles.split('@')
  ]
  host, port = _host_and_port('--send', text, place, _DICOM)
  if len(calling) > 1 or not called or port is None:
    raise InputError(f'--send={_shown(text)}: allowed is {_DICOM}')
  for title in (called, *calling):
    _check_title(title)
  return Node(called, calling[0] if calling else CALLING, host, port)


def source(text: str) -> Web:
  """Returns what `--input` names, where `is_address`: a study or a series.

  Raises:
    InputError: neither of them.
  """
  if not text.startswith(_WEBS):
    raise InputError(
      f'--input={_shown(text)}: allowed is {_SERIES}, or the path of a folder '
      'or a file'
    )
  found = _web('--input', text, _SERIES)
  match = _RESOURCE.fullmatch(found.root)
  if match is None:
    raise InputError(
      f'--input={_shown(text)}: names no study and no series; allowed is '
      f'{_SERIES}'
    )
  root, study, series = match.groups(default='')
  for uid in (study, series):
    if uid and not is_uid(uid):
      raise InputError(
        f'--input={_shown(text)}: {quote(uid)} is no UID; allowed are up to '
        f'{_LONGEST_UID} digits and dots'
      )
  return found._replace(root=root, study=study, series=series)


def is_uid(text: str) -> bool:
  """Returns whether a text is a UID (PS3.5, section 9)."""
  return len(text) <= _LONGEST_UID and _UID.fullmatch(text) is not None


def library(of: Node | Web) -> Any:
  """Returns the module that speaks to an archive, which needs an extra.

  Raises:
    InputError: that is not installed.
  """
  try:
    if isinstance(of, Node):
      from medseg_jax.pacs import store

      return store
    from medseg_jax.pacs import web

    return web
  except ImportError as error:
    raise InputError(
      f"{of.name} needs {error.name}: pip install 'medseg_jax[pacs]'"
    ) from error


def _web(flag: str, text: str, allowed: str) -> Web:
  scheme, _, rest = text.partition('://')
  place, slash, path = rest.partition('/')
  if '@' in place:
    raise InputError(f'{flag}={_shown(text)}: {_SECRETS}')
  host, port = _host_and_port(flag, text, place, allowed)
  root = f'{slash}{path}'.rstrip('/')
  if re.search(r'[?#@\s\\]|//|/\.\.?(/|$)', root):
    raise InputError(
      f'{flag}={_shown(text)}: allowed is {allowed}, and nothing behind it'
    )
  place = host if port is None else f'{host}:{port}'
  return Web(scheme == 'dicomwebs', place, root)


def _host_and_port(
  flag: str, text: str, place: str, allowed: str
) -> tuple[str, int | None]:
  host, colon, number = place.partition(':')
  port = None
  if colon and re.fullmatch('[0-9]{1,5}', number):
    port = int(number)
  if (
    not _HOST.fullmatch(host)
    or (colon and port is None)
    or not 0 < (port or 1) < 2**16
  ):
    raise InputError(
      f'{flag}={_shown(text)}: allowed is {allowed}, the host a name or an '
      'IPv4 address, the port from 1 to 65535'
    )
  return host, port


def _check_title(title: str) -> None:
  allowed = set(string.printable[:95]) - {'\\'}
  if not title or len(title) > _LONGEST_TITLE or set(title) - allowed:
    raise InputError(
      f'--send has the title {quote(title)}; allowed are up to '
      f'{_LONGEST_TITLE} characters of ASCII but the backslash'
    )


def _shown(text: str) -> str:
  """Returns an address without what may be a secret: whatever is before `@`.

  And what comes behind a question mark.
  """
  scheme, separator, rest = text.rpartition('://')
  rest = re.split('[?#]', rest)[0]
  if '@' in rest:
    rest = f'...@{rest.rpartition("@")[2]}'
  return f'{scheme}{separator}{rest}'
