"""`python -m runtime`: the command line, without the current folder on the path."""

import os
import sys


def forget_folder() -> None:
    """Take the current folder off the path: `python -m` has put it there, before Python's own modules.

    Where this installation itself is found only by it, it is put last, for child processes too.
    """
    first = sys.path[0] if sys.path and not sys.flags.safe_path else None
    try:
        if first is None or first != os.getcwd():
            return
    except FileNotFoundError:  # it has been removed
        return
    del sys.path[0]
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if first not in sys.path and os.path.realpath(first) == home:
        sys.path.append(first)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), first)))


if __name__ == "__main__":
    forget_folder()
    from runtime.cli import main

    main()
