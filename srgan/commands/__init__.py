"""The `srgan` command: a file for each verb, which reads its options, calls the library and says what happened."""
