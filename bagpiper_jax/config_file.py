"""Reads an `ml_collections` config file and its overrides from the command line."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from bagpiper_jax.errors import UserError


def read_config_file(path: str, overrides: Sequence[str], command: str) -> ConfigDict:
    """The config of a file, with `--config.KEY=VALUE` overrides applied.

    Raises:
      UserError: no file, a file that fails, an unknown key, a value of another type.
    """
    values = flags.FlagValues()
    argv = [command, "--config", path, *overrides]
    try:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        stray = values(argv)[1:]
        if stray:
            raise UserError(f"what is {' '.join(stray)}? Settings are given as --config.KEY=VALUE")
        values.config.to_dict()  # a file that failed to load says so only when it is read
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"there is no config file {path} that can be read") from e
    except Exception as e:  # the file is a program, which can fail in any way
        raise UserError(f"the config {path} does not load: {' '.join(str(e).split())}") from e
    return values.config
