"""`python -m srgan` is the `srgan` command."""

from srgan.cli import main

if __name__ == "__main__":
    main()
