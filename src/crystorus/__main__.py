"""`python -m crystorus`."""

from crystorus.cli import main

if __name__ == "__main__":
    main()
