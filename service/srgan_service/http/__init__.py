"""What the service says and hears: the application, its routes, and the limits of uploads."""
