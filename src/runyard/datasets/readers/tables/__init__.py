"""Tables in: rows with an image column, from JSON, JSON Lines and text tables such as CSV."""
