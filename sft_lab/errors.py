"""The one error that means "the request was wrong": the command line turns it into exit code 2."""


class RequestError(ValueError):
    """A bad key, value, file or server, known before the base model loads.

    The message is one or two lines that name the key or file, the value seen, and the fix.
    """
