"""Answers that are kept and given again to whoever asks the same of the same bundle: what Triton calls the response cache.

Least recently used first out, bounded in bytes. A bundle is its digest, so a new version, or the same one exported anew, never
answers with what the old one said; what has no digest is not cached.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from seatrial.protocol import Tensor
from seatrial.tensors import Array
from seatrial_serving.workers import Outputs

OVERHEAD_BYTES = 1024
"""What keeping an answer takes besides its tensors, so that many small ones are bounded too."""


def fingerprint(digest: str, graph: str, inputs: Sequence[Tensor]) -> bytes:
    """The same for the same question only: 128 bits of BLAKE2 over everything that decides the answer."""
    state = blake2b(f"{digest} {graph}".encode(), digest_size=16)
    for name, datatype, array in inputs:
        head = f"\0{name}\0{datatype}\0{array.shape}\0"
        state.update(head.encode())
        if array.dtype.hasobject:
            for element in array.flat:
                state.update(len(element).to_bytes(8, "little"))
                state.update(element)
        else:
            state.update(np.ascontiguousarray(array).data)
    return state.digest()


@dataclass(slots=True)
class ResponseCache:
    """Lives on one event loop."""

    max_bytes: int
    size_bytes: int = 0
    _kept: OrderedDict[bytes, tuple[Outputs, int]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, question: bytes) -> Outputs | None:
        found = self._kept.get(question)
        if found is None:
            return None
        self._kept.move_to_end(question)
        return found[0]

    def keep(self, question: bytes, outputs: Outputs) -> None:
        """Forget as many of the oldest as it takes; what is larger than the whole cache is not kept."""
        kept = tuple([Tensor(name, datatype, _own(array)) for name, datatype, array in outputs])
        size = OVERHEAD_BYTES + sum(_size_bytes(array) for _, _, array in kept)
        if size > self.max_bytes or question in self._kept:
            return
        self._kept[question] = kept, size
        self.size_bytes += size
        while self.size_bytes > self.max_bytes:
            _, (_, forgotten) = self._kept.popitem(last=False)
            self.size_bytes -= forgotten


def _own(array: Array) -> Array:
    """A copy that nobody can write to: an answer is a view of its whole batch."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _size_bytes(array: Array) -> int:
    return array.nbytes + (sum(map(len, array.flat)) if array.dtype.hasobject else 0)
