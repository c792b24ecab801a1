"""The sections of a report: each is a function of the variants, or None where it has nothing."""
