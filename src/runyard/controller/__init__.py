"""Claims runs for the free capacity of one machine, places them, and looks after what it has placed."""
