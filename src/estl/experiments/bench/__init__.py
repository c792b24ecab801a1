"""`estl bench`: what the package's parts cost, beside peers, in one run."""
