"""What a worker's process runs. Started by its parent only: the first argument is the number of an inherited socket."""

import socket
import sys

from relay import process
from relay.workers.channel import boot_from


def main() -> int:
    channel = socket.socket(fileno=int(sys.argv[1]))
    boot = boot_from(channel)
    if boot is None:
        return 1
    process.start()
    from relay.workers.worker import serve  # noqa: PLC0415  (only now)

    return serve(boot, channel)


if __name__ == "__main__":
    sys.exit(main())
