"""`python -m srgan` is the `srgan` command."""

from srgan.commands.cli import main

if __name__ == "__main__":
    main()
