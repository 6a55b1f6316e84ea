"""Loaded by every Python process that has this folder on its path: any way to a network is written down and barred.

One line a try, `EVENT host`, is appended to the file that DPZO_TESTS_NETWORK names. Sockets between processes of one
machine that have no address of a network are let through.
"""

import os
import sys

_EVENTS = {
    "socket.connect": 1,  # (socket, address)
    "socket.sendto": 1,
    "socket.getaddrinfo": 0,  # (host, port, ...)
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
}


def _watch(event, arguments):  # type: ignore[no-untyped-def]
    if event not in _EVENTS:
        return
    place = arguments[_EVENTS[event]]
    if event in ("socket.connect", "socket.sendto") and isinstance(place, (str, bytes)):
        return
    host = place[0] if isinstance(place, tuple) else place
    with open(os.environ["DPZO_TESTS_NETWORK"], "a") as file:
        file.write(f"{event} {host}\n")
    raise OSError(101, "the tests bar the network")


if "DPZO_TESTS_NETWORK" in os.environ:
    sys.addaudithook(_watch)
