"""Spiking neurons: `lif` defines the result, `fused` computes the same in one pass."""

from estl.neurons.lif import LIF, Sigmoid, Triangle, lif

__all__ = ["LIF", "Sigmoid", "Triangle", "lif"]
