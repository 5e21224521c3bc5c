"""`python -m srgan` is the `srgan` command."""

from srgan.isolated import leave_folder_at_hand

if __name__ == "__main__":
    leave_folder_at_hand()  # before anything else is imported

    from srgan.commands.cli import main

    main()
