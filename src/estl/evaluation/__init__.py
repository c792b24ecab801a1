"""Evaluation of a student: accuracy over time, diagnostics, energy, attacks."""
