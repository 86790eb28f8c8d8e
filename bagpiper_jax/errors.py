"""The one exception that is meant for people."""


class UserError(Exception):
    """Bad input, told in one line that names the file or key and the mend.

    The command line prints the message without a traceback and exits with code 2.
    """
