"""Reads an `ml_collections` config file and its overrides from the command line."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from bagpiper_jax.errors import UserError


def read_config_file(argv: Sequence[str], command: str) -> ConfigDict:
    """The config that `--config FILE` names, with `--config.KEY=VALUE` overrides applied.

    Args:
      argv: the arguments, `--config` among them.
      command: whose they are, for messages.

    Raises:
      UserError: no file, a file that fails, an unknown key, a value of another type.
    """
    values = flags.FlagValues()
    argv = [command, *argv]
    try:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        stray = values(argv)[1:]
        if stray:
            raise UserError(f"what is {' '.join(stray)}? Settings are given as --config.KEY=VALUE")
        config = values.config
        if config is not None:
            config.to_dict()  # a file that failed to load says so only when it is read
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"there is no config file that can be read: {' '.join(argv[1:3])}") from e
    except KeyError as e:
        raise UserError(
            f"the config does not load: no key {' '.join(str(e.args[0]).split())}"
        ) from e
    except Exception as e:  # the file is a program, which can fail in any way
        raise UserError(f"the config does not load: {_one_line(e)}") from e
    if config is None:
        raise UserError("name a config: --config experiments/mini.py")
    return config


def _one_line(error: Exception) -> str:
    """The first line, or the last one of a traceback that was made text."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[-1 if any("Traceback" in line for line in lines) else 0]
