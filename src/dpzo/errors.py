"""The one error a user is meant to read."""


class DpzoError(Exception):
    """A user error; its message is printed as one line and the command exits with code 2.

    The message names the file, the row number, the column or the option, and the mend. It never holds the content of a
    record, a loss, or a count taken from private data, so it is safe to log.

    Code below the command line names an argument in backquotes, as in "`num_examples` must be at least 1"; the command
    line prints the flag in its place (`dpzo.cli.fields.with_flags`).
    """
