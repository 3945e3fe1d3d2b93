"""Starts a child process of a worker, by its path: what runs there is found only when the worker has said where modules are."""

# Nothing of ours may be imported here: the worker's path has not come yet.
import os
import socket
import struct
import sys

LENGTH = struct.Struct(">I")


def main() -> None:
    """Run what comes over the socket of this number, until it is closed."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)  # else what a handler starts would keep it open
    (length,) = LENGTH.unpack(_read(connection, LENGTH.size))
    main_file, *path = map(os.fsdecode, _read(connection, length).split(b"\0"))
    sys.path[:] = path
    del sys.modules["__main__"]  # a handler that looks for it there must find its own, or nothing
    from runtime.serving import serve

    serve(connection, main_file)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:  # the worker has ended, or was told to stop
            sys.exit()
        data += more
    return data


if __name__ == "__main__":
    main()
