"""`relay serve --workers N`: N processes on one port, kept alive by the one that was started, their parent.

    parent.py      the order of start and stop; replaces whoever dies
    patience.py    how long it waits before it does so
    port.py        the public port: reserved by the parent, listened on by the workers
    child.py       one worker, seen from the parent: its process, questions to it
    channel.py     what the two say to each other
    worker.py      the worker's own side: an App without an admin listener
    overview.py    the one admin listener, for all of them together
    exposition.py  many pages of metrics become one

The parent serves nobody and reads no run. Workers share the log's Redis, as pods do, and nothing else: between them is
the protocol of the fleet. What the parent owns, it owns for all: the embedded server, the port, the configuration they
run with, the secret of viewer tokens.
"""
