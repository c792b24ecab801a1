"""Spiking neurons: `lif` defines the result, `fused` computes the same in one pass."""

from estl.neurons.lif import LIF, lif
from estl.neurons.surrogates import Sigmoid, Triangle

__all__ = ["LIF", "Sigmoid", "Triangle", "lif"]
