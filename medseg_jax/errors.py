"""The one exception for input that a user can put right."""


class InputError(ValueError):
  """Bad input: its message is one line that says what, where, what is allowed.

  `main` prints the line and exits with status 1. Library functions raise plain
  `ValueError` or `TypeError` for misuse by a programmer instead.
  """
