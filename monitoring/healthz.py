"""`python -m monitoring.healthz PORT [/readyz]`: asks the process beside it how it is, for a container's health check.

Invariant: status 0 is the answer 200 and nothing else; whatever else there was is one line on standard output, where
the container's engine keeps it. Refuses to know what the process does: its answer says what it waits for.

It knows the standard library alone, for it is started every few seconds.
"""

from __future__ import annotations

import http.client
import sys

SECONDS = 5.0
LONGEST = 1000  # characters of an answer that are shown


def ask(port: int, path: str = "/healthz") -> tuple[bool, str]:
    """Whether the process that serves `port` of this machine says 200 there, and its words."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status == http.HTTPStatus.OK, f"{answer.status} {answer.read(LONGEST).decode(errors='replace')}"
    except (OSError, http.client.HTTPException) as error:  # nobody listens, or it is no process of ours
        return False, f"port {port}: {error or type(error).__name__}"
    finally:
        connection.close()


def main() -> None:
    """Entry point."""
    well, words = ask(int(sys.argv[1]), *sys.argv[2:3])
    print(" ".join(words.split()))
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
