"""Run the command line: ``python3 -m threaded_echo``."""
import os
import sys

from .command.run import SURVIVORS, main


def command() -> None:
    """Run the command line, and end the process with its exit status."""
    status = main()
    if status == SURVIVORS:
        # The interpreter's own end would wait for a survivor's executor or process, or abort over its output.
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    command()
