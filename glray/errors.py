"""The one exception for what a person can cause and fix."""


class UserError(Exception):
    """An error that a person caused and can fix.

    The message is one line: where, both numbers, the consequence, the remedy. The command line
    prints it without a traceback and exits with status 2.
    """


class MissingError(UserError):
    """What was named is not there, or not any more."""
