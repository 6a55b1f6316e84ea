"""python -m dpzo: the command line, for launchers that start modules."""

from dpzo.cli import main

if __name__ == "__main__":
    main()
