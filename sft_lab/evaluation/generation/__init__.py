"""Engines that generate answers with the model under evaluation, greedily or by sampling."""

from sft_lab.data.batching import batches_longest_first
from sft_lab.evaluation.generation.decoding import GREEDY, Decoding
from sft_lab.evaluation.generation.engine import Engine, TokenPair
from sft_lab.evaluation.generation.engines import (
    EngineName,
    NativeEngine,
    TransformersContinuous,
    make_engine,
)
from sft_lab.evaluation.generation.native import evaluating, generate
from sft_lab.evaluation.generation.vllm.engine import VllmEngine
from sft_lab.evaluation.generation.vllm.server import VllmServer

__all__ = [
    "GREEDY",
    "Decoding",
    "Engine",
    "EngineName",
    "NativeEngine",
    "TokenPair",
    "TransformersContinuous",
    "VllmEngine",
    "VllmServer",
    "batches_longest_first",
    "evaluating",
    "generate",
    "make_engine",
]
