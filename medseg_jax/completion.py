"""What a shell reads to complete the command line: `--completion=bash`."""

from collections.abc import Iterable

from absl import flags

from medseg_jax.command_help import PATHS, values_of

# The word before the cursor tells what follows. In bash a word also ends at =.
_BASH = """\
# medseg-jax in bash; in ~/.bashrc:  source <(medseg-jax --completion=bash)
_medseg_jax() {{
  local line=${{COMP_LINE:0:COMP_POINT}} words
  local word=${{line##*[[:space:]]}}
  COMPREPLY=()
  case $word in
{values}
    {paths})
      compopt -o filenames
      mapfile -t COMPREPLY < <(compgen -f -- "${{word#*=}}")
      return ;;
    --*=*) return ;;
    --config.*) words='{keys}' ;;
    *) words='{names}' ;;
  esac
  [[ $word == *=* ]] || compopt -o nospace
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "${{word#*=}}")
}}
complete -F _medseg_jax medseg-jax
"""
_ZSH = """\
# medseg-jax in zsh; in ~/.zshrc after compinit:
#   source <(medseg-jax --completion=zsh)
_medseg_jax() {{
  case $PREFIX in
{values}
    {paths}) compset -P '*='; _files ;;
    --*=*) ;;
    --config.*) compadd -S '' -- {keys} ;;
    *) compadd -S '' -- {names} ;;
  esac
}}
compdef _medseg_jax medseg-jax
"""


def script(
  shell: str, known: Iterable[flags.Flag], config_keys: Iterable[str]
) -> str:
  """Returns the script for a shell.

  Args:
    shell: 'bash' or 'zsh'.
    known: the flags to complete.
    config_keys: such as 'data.path'.
  """
  known = list(known)
  cases = []
  for flag in known:
    if values_of(flag):
      words = ' '.join(values_of(flag))
      do = f"words='{words}'"
      if shell == 'zsh':
        do = f"compset -P '*='; compadd -- {words}"
      cases.append(f'    --{flag.name}=*) {do} ;;')
  names = [f'--{f.name}' + '=' * (not f.boolean) for f in known]
  return (_ZSH if shell == 'zsh' else _BASH).format(
    values='\n'.join(cases),
    paths='|'.join(f'--{f.name}=*' for f in known if f.name in PATHS),
    keys=' '.join(f'--config.{key}=' for key in config_keys),
    names=' '.join([*names, '--config.', '--help']),
  )
