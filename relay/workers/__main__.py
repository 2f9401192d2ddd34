"""What a worker's process runs. Started by its parent only: the first argument is the number of an inherited socket."""

import sys

from relay.workers.worker import main

if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
