"""The parts of the edge-guided distillation: teacher, edges, fusion, contrastive loss."""

from estl.guidance.contrastive import ContrastiveLoss
from estl.guidance.edges import LearnableEdgeDetector, SobelEdges, WrittenEdgeDetector
from estl.guidance.fusion import EdgeGuidedFusion
from estl.guidance.teacher import ClipTeacher

__all__ = [
    "ClipTeacher",
    "ContrastiveLoss",
    "EdgeGuidedFusion",
    "LearnableEdgeDetector",
    "SobelEdges",
    "WrittenEdgeDetector",
]
