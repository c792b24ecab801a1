"""Spiking students: each maps event frames (B,T,C,H,W) to an `Output` and has `classify`."""

from estl.students.resnet import ResNet, resnet18, resnet19, resnet34, resnet50
from estl.students.spikformer import Spikformer
from estl.students.stream import State, fold, step
from estl.students.vggsnn import VGGSNN

__all__ = [
    "VGGSNN",
    "ResNet",
    "Spikformer",
    "State",
    "fold",
    "resnet18",
    "resnet19",
    "resnet34",
    "resnet50",
    "step",
]
