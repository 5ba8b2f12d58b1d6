"""The offline practice lab: a real CA, name servers and an emulated Alibaba Cloud, all on loopback."""

__all__ = ["Lab", "LabError"]


class LabError(Exception):
    """Something a person can put right: one clear sentence, and the exit code it deserves."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def __getattr__(name: str) -> object:
    # The first "python3 lab" runs before .venv exists, so nothing outside the standard library is imported
    # with the package itself.
    if name == "Lab":
        from lab.lab import Lab

        return Lab
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
