"""The names of keys on a cluster. Invariant: what a worker asks for together, again and again, is of one
server: while that answers, no other one keeps it from serving the users whom it can serve.
"""

from featurestore.cluster.slots import even_tags
from featurestore.keys import Keys


class ClusterKeys(Keys):
    """Key names of a namespace on a cluster: partitions are spread evenly over the slots; the configuration,
    the registries of items and the deltas of generations lie in the slot of the pointer.
    """

    def __init__(self, namespace: str, partitions: int) -> None:
        super().__init__(namespace, partitions, even_tags(partitions))
        self.config = b"{%b}:config" % self.live

    def items(self, epoch: int) -> bytes:
        """Item id -> item row."""
        return b"{%b}:%d:items" % (self.live, epoch)

    def order(self, epoch: int) -> bytes:
        """Item row -> item id."""
        return b"{%b}:%d:order" % (self.live, epoch)

    def deltas(self, epoch: int, generation: int) -> bytes:
        """Item rows folded in since the fit."""
        return b"{%b}:%d:deltas:%d" % (self.live, epoch, generation)
