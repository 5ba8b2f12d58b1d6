"""The one kind of error a user sees: what was asked, what came back, what to do."""


class Failure(Exception):
    """The CA, the cloud, the network or this machine refused. Exit code 1.

    what: one or more lines: what was asked and what came back
    remedy: one line: what the person at the keyboard can do now
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


class Usage(Failure):
    """Wrong usage or settings, or an earlier step is missing. Exit code 2."""

    exit_code = 2


def os_failure(error: OSError) -> Failure:
    """An error of the operating system in words: which file, and what about it."""
    where = f"{error.filename}: " if error.filename else ""
    return Failure(
        f"{where}{error.strerror or error}", "see that file or folder: is it yours, and is there space?"
    )
