"""The page *Run*: one module per tab, ``tabs`` and ``actions`` with what the routes call."""
