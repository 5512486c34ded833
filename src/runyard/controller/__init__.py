"""Claims runs for the free capacity of one machine, places them, and supervises their attempts."""
