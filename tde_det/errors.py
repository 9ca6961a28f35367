"""The one exception for what a user can put right."""


class InputError(ValueError):
    """A config value, data set, file or argument is unusable; the message names it and a way out.

    The command line tools print the message alone, without a traceback.
    """
