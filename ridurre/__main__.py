"""``python -m ridurre`` is the command line."""

from ridurre.cli import main

if __name__ == "__main__":
    main(prog_name="ridurre")
