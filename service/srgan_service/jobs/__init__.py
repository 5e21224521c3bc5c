"""Pictures that take longer than a request."""
