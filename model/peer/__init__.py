"""Parameter-efficient expert retrieval (PEER, 2407.04153): a million single neurons behind product keys."""

from model.peer.layer import PEER

__all__ = ["PEER"]
