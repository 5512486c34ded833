"""The server: ``http`` serves clients, ``services`` holds the rules, ``runyard.store`` the rows."""
