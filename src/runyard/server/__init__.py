"""The server: ``http`` speaks to clients, ``services`` holds the rules, ``runyard.store`` the rows."""
