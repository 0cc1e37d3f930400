"""How a GGUF file may store the weights: listed once. Imports neither gguf nor torch.

What a type is in the file (bytes of a block, values in it) is the `gguf` package's, by the names given here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GgufType:
    """One type.

    Attributes:
        name: as in `--type` and `export.gguf_type`, and as llama.cpp calls the file's.
        layers: the type of most layers' weights, a member of `gguf.GGMLQuantizationType`.
        ends: that of embedding and head.
        bits: of a weight, the scale of its block left out.
        words: what it is, for the documents.
        by_llama_cpp: llama.cpp's own quantization writes it, and gives some layers more bits.
    """

    name: str
    layers: str
    ends: str
    bits: int
    words: str
    by_llama_cpp: bool = False

    @property
    def file_type(self) -> str:
        """The file's own word for it, a member of `gguf.LlamaFileType`."""
        return "ALL_F32" if self.name == "f32" else f"MOSTLY_{self.name.upper()}"

    @property
    def packed(self) -> bool:
        """Whether weights are stored in blocks that share a scale."""
        return self.bits < 16

    @property
    def loss(self) -> str:
        """What it does to the weights, a key of `fidelity.THRESHOLDS`."""
        return f"{self.bits}-bit"


def _mix(name: str, layers: str, bits: int, words: str) -> GgufType:
    return GgufType(name=name, layers=layers, ends="Q6_K", bits=bits, words=words, by_llama_cpp=True)


# In 4 bits embedding and head keep 8: they are a fifth of the built-in model and most sensitive.
GGUF_TYPES: dict[str, GgufType] = {
    kind.name: kind
    for kind in (
        GgufType(name="f32", layers="F32", ends="F32", bits=32, words="single precision, for llama.cpp's own tools"),
        GgufType(name="f16", layers="F16", ends="F16", bits=16, words="half precision"),
        GgufType(name="bf16", layers="BF16", ends="BF16", bits=16, words="bfloat16, for values beyond F16's range"),
        GgufType(name="q8_0", layers="Q8_0", ends="Q8_0", bits=8, words="blocks of 8-bit values with a scale"),
        _mix("q6_k", "Q6_K", 6, "6-bit K-quants"),
        _mix("q5_k_m", "Q5_K", 5, "5-bit K-quants, the most sensitive layers in 6 bits"),
        _mix("q5_k_s", "Q5_K", 5, "5-bit K-quants"),
        _mix("q4_k_m", "Q4_K", 4, "4-bit K-quants, the most sensitive layers in 6 bits: what is downloaded most"),
        _mix("q4_k_s", "Q4_K", 4, "4-bit K-quants, a few layers in 5 bits"),
        _mix("iq4_xs", "IQ4_XS", 4, "4-bit values of an uneven grid"),
        GgufType(
            name="q4_1", layers="Q4_1", ends="Q8_0", bits=4, words="blocks of 4-bit values with a scale and a minimum"
        ),
        GgufType(name="q4_0", layers="Q4_0", ends="Q8_0", bits=4, words="blocks of 4-bit values with a scale"),
        _mix("q3_k_m", "Q3_K", 3, "3-bit K-quants, the most sensitive layers in 4 or 5 bits"),
        _mix("q2_k", "Q2_K", 2, "2-bit K-quants, the most sensitive layers in 3 or 4 bits"),
    )
}
