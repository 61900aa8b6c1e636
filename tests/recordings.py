"""Code for `first` of `run_cvt`: networks on the CPU through stand-ins for CUDA graphs.

What a stand-in computes differs from the network as it is by a thousandth, where Triton's kernels
differ in the last digits: outputs show which of the two computed a row. A second thing that must
not matter: the number of rows that it computes is the one that it was recorded with.
"""

LIKE_GRAPHS = """
import torch
from cvt_cli.inference.network_runner import NetworkRunner
from cvt_cli.model import graphs


class Recording:
    def __init__(self, network, images):
        self.network, self.source = network, images.clone()

    def __call__(self, images):
        self.source[: len(images)] = images
        return self.network(self.source)[: len(images)] * 1.001


class Recorder:
    def __call__(self, network, images):
        return Recording(network, images)


def through_graphs(self, network, *given, **named):
    before(self, network, *given, **named)
    self._graphs = tuple(map(graphs.Graphed, (network, network.forward_features)))
    self.model, self.features = self._graphs


graphs._Recorder = Recorder
before, NetworkRunner.__init__ = NetworkRunner.__init__, through_graphs
"""
