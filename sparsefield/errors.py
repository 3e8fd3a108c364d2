"""The one exception that means: the user can mend this; and the check that every command has."""


class UserError(Exception):
    """Bad input from outside: a path, a file, a setting.

    The message is one line that says what is wrong, where, and what to do. The command lines
    (`sparsefield.cli.run`) print it without a traceback and exit with code 2.
    """


def require_seed(seed: int) -> None:
    """Raises UserError unless it is a whole number that every generator takes."""
    if not 0 <= seed < 2**63 or seed != int(seed):
        raise UserError(f"seed={seed}: give a whole number from 0 to 2^63 - 1")
