"""The pages: HTML that the server renders from its services, for browsers."""
