"""``client.machines``: the machines that train runs; changes are for admins."""
