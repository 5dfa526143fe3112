"""Files for devices."""
