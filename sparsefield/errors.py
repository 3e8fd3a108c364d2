"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """Bad input from outside: a path, a file, a setting.

    The message is one line that says what is wrong, where, and what to do. The command lines
    (`sparsefield.cli.run`) print it without a traceback and exit with code 2.
    """
