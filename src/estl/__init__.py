"""ESTL: spiking neural networks for vision, trained with better supervision."""

__version__ = "0.1.0"
