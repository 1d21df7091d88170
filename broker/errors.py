"""The errors that users see as one line."""


class Refused(Exception):
    """A start that cannot be right: bad recipe, absent model, unreachable Redis.

    Carries one clear line (cause and remedy). Entry points print it and exit with status 2; nothing is retried.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        self.cause, self.remedy = cause, remedy
        super().__init__(f"{cause}: {remedy}" if remedy else cause)


class Malformed(Exception):
    """A message that is not what its schema says. It is counted, dead-lettered and settled, never raised to the top."""


class Fenced(Exception):
    """Another learner has taken over this run; the one that sees this must stop without writing."""


class Behind(Exception):
    """Redis holds less than it has acknowledged: the run is taken up again from its newest checkpoint."""
