"""`python -m flq` is `flq`."""

from flq.cli.main import main

if __name__ == "__main__":
    main()
