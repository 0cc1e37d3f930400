"""How a GGUF file may store the weights: the types that fitune writes, listed once. Imports neither gguf nor torch.

What a type is in the file (bytes of a block, values in it) is the `gguf` package's, by the names given here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GgufType:
    """One type.

    Attributes:
        name: as in `--type` and `export.gguf_type`.
        layers: the type of the layers' weights, a member of `gguf.GGMLQuantizationType`.
        ends: that of embedding and head.
        bits: of a weight, the scale of its block left out.
        words: what it is, for the documents.
    """

    name: str
    layers: str
    ends: str
    bits: int
    words: str

    @property
    def file_type(self) -> str:
        """The file's own word for it, a member of `gguf.LlamaFileType`."""
        return f"MOSTLY_{self.layers}"

    @property
    def packed(self) -> bool:
        """Whether weights are stored in blocks that share a scale."""
        return self.bits < 16

    @property
    def loss(self) -> str:
        """What it does to the weights, a key of `fidelity.THRESHOLDS`."""
        return f"{self.bits}-bit"


# In 4 bits embedding and head keep 8: they are a fifth of the built-in model and most sensitive.
GGUF_TYPES: dict[str, GgufType] = {
    kind.name: kind
    for kind in (
        GgufType(name="f16", layers="F16", ends="F16", bits=16, words="half precision"),
        GgufType(name="bf16", layers="BF16", ends="BF16", bits=16, words="bfloat16, for values beyond F16's range"),
        GgufType(name="q8_0", layers="Q8_0", ends="Q8_0", bits=8, words="blocks of 8-bit values with a scale"),
        GgufType(
            name="q4_1", layers="Q4_1", ends="Q8_0", bits=4, words="blocks of 4-bit values with a scale and a minimum"
        ),
        GgufType(name="q4_0", layers="Q4_0", ends="Q8_0", bits=4, words="blocks of 4-bit values with a scale"),
    )
}
