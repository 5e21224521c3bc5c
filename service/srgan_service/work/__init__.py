"""What the service does with a picture: admission, lanes, the device that is shared, the models."""
