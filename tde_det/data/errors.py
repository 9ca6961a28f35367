"""The one exception for data that cannot be used."""


class DataError(ValueError):
    """A data set, results or image file is missing or wrong; the message says which and what to do.

    The command line tools print the message alone, without a traceback.
    """
