"""Signed links: requests that authorise themselves, wherever they lead; none of our headers goes along."""
