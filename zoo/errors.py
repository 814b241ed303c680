"""What a user can do wrong, said in one line."""


class UserError(Exception):
    """A slip of the user's: the command line prints its one line and exits with code 2, without a traceback.

    The message says what was expected and what was found.
    """
