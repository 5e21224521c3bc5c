"""What several tests use: engines without weights, odd files, a running service, a browser."""
