"""Words that newcomers meet, three sentences each, as data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TERMS", "Term"]


@dataclass(frozen=True, slots=True)
class Term:
    """A word.

    Attributes:
        sentences: Three: what it is, how it works or what it is for, what follows for you.
        origin: Where it comes from.
        where: What has to do with it: formats or runtimes.
        aliases: What it is called as well.
    """

    sentences: tuple[str, str, str]
    origin: str
    where: str
    aliases: tuple[str, ...] = ()


_EVERYWHERE = "all formats"

TERMS: dict[str, Term] = {
    "quantization": Term(
        (
            "Storing a model's weights as small integers instead of 16-bit numbers.",
            "Neighbouring weights share a scale, and each is rounded to a multiple of it.",
            "The model gets smaller and faster, and its answers change a little.",
        ),
        "signal processing; for language models see arXiv:2208.07339",
        _EVERYWHERE,
        ("quantize", "quantise", "quant"),
    ),
    "block": Term(
        (
            "A few neighbouring weights of a row that are quantized together, 32 in most types.",
            "They share one scale, and in some types a minimum.",
            "Smaller blocks are more exact and take more space.",
        ),
        "ggml, llama.cpp's library",
        "GGUF; others say group",
        ("blocks", "block-size"),
    ),
    "super-block": Term(
        (
            "A block of 256 weights that is made of smaller blocks.",
            "The scales of the small ones are integers of few bits, times one scale of the super-block.",
            "That is what the K in Q4_K stands for, and why it is more exact than Q4_0 at the same size.",
        ),
        "llama.cpp's k-quants, pull request 1684",
        "GGUF",
        ("superblock", "k-quant", "k-quants"),
    ),
    "group size": Term(
        (
            "How many neighbouring weights of a row share a scale.",
            "It is the N of -gN in names of recipes; -channel means a whole row.",
            "Halving it makes 4 bits about 0.1 to 0.25 bits larger, and more exact.",
        ),
        "GPTQ, arXiv:2210.17323",
        "ONNX, OpenVINO, MLX, LiteRT, servers",
        ("group", "groups", "gn", "groupsize"),
    ),
    "scale": Term(
        (
            "The number that the codes of a block are multiplied with to give weights.",
            "It is stored with 16 bits in most types.",
            "One large weight makes the scale large, and all others in the block less exact.",
        ),
        "signal processing",
        _EVERYWHERE,
        ("scales",),
    ),
    "zero point": Term(
        (
            "The code that stands for the weight 0.",
            "With it codes cover the range that the weights of a block have, even if most are positive.",
            "It takes a few more bits, and makes 4 bits more exact.",
        ),
        "gemmlowp, arXiv:1712.05877",
        "ONNX, OpenVINO, servers; GGUF and MLX have a minimum instead",
        ("zero-points", "zeropoint", "minimum"),
    ),
    "asymmetric": Term(
        (
            "Codes cover the range from the smallest to the largest weight of a block.",
            "That needs a zero point or a minimum beside the scale; symmetric codes lie around zero.",
            "Asymmetric is more exact, and some hardware, such as NPUs, takes symmetric alone.",
        ),
        "gemmlowp, arXiv:1712.05877",
        "ONNX, OpenVINO, servers",
        ("symmetric", "asym", "sym"),
    ),
    "bits per weight": Term(
        (
            "The size of all tensors in bits, divided by the number of weights.",
            "Scales count, so 4-bit types come to 4.25 or more.",
            "Parameters times this, divided by 8, is about the size of the file; phiconv plan is exact.",
        ),
        "llama.cpp",
        _EVERYWHERE,
        ("bpw", "bits"),
    ),
    "imatrix": Term(
        (
            "A file that says how much each column of each matrix matters, measured on a text.",
            "The quantizer rounds the important columns more carefully.",
            "Make one with phiconv calibrate; types below 3 bits need it.",
        ),
        "llama.cpp, pull request 4861",
        "GGUF",
        ("importance-matrix", "importance"),
    ),
    "calibration": Term(
        (
            "Letting the model read a text and measuring what goes into its matrices.",
            "With that, codes are chosen that keep the answers, and not each weight, as exact as may be.",
            "phiconv calibrate makes one, and --effort best uses it.",
        ),
        "GPTQ, arXiv:2210.17323",
        _EVERYWHERE,
        ("calibrate", "effort", "best"),
    ),
    "divergence": Term(
        (
            "How far the predictions of a quantized model are from those of the original.",
            "It is the Kullback-Leibler divergence, the mean over the tokens of a text; 0 is no change.",
            "Compare it between recipes: half of it is half the harm.",
        ),
        "Kullback and Leibler, 1951; for models, llama-perplexity of llama.cpp",
        _EVERYWHERE,
        ("kl", "kld", "kl-divergence", "lost"),
    ),
    "perplexity": Term(
        (
            "How surprised a model is by a text: as if it had to guess among so many tokens each time.",
            "It is the exponential of the mean negative log-likelihood; lower is better.",
            "It depends on the text and the tokenizer, so compare it for one model and one text alone.",
        ),
        "Jelinek and others, 1977",
        _EVERYWHERE,
        ("ppl",),
    ),
    "KV cache": Term(
        (
            "What a model remembers of a text: a key and a value for each token in every layer.",
            "It grows with the text, and comes on top of the weights in memory.",
            "phiconv choose --context N says how much it takes.",
        ),
        "transformer decoders in general",
        "all runtimes",
        ("cache", "key-value-cache"),
    ),
    "grouped-query attention": Term(
        (
            "Several query heads share one key and one value head.",
            "So the cache is smaller: a third of it in Phi-4-mini, which has 24 query and 8 key-value heads.",
            "You need not do anything about it; phiconv reads it from config.json.",
        ),
        "arXiv:2305.13245",
        "all runtimes",
        ("gqa",),
    ),
    "context": Term(
        (
            "How many tokens a model can look back at, prompt and answer together.",
            "A token is about three quarters of an English word.",
            "A longer one takes more memory, for the cache.",
        ),
        "transformer decoders in general",
        "all runtimes",
        ("context-length", "context-window", "max-position-embeddings"),
    ),
    "LongRoPE": Term(
        (
            "A way to make a model read longer texts than it was first trained on.",
            "The rotary embedding has two lists of factors: one for short texts, one for long ones.",
            "Some runtimes do not switch between them; --short-context and --long-context choose one.",
        ),
        "arXiv:2402.13753",
        "Phi-3 and Phi-4-mini with 128K contexts",
        ("longrope", "long-rope", "su"),
    ),
    "RoPE": Term(
        (
            "How a model knows the order of tokens: parts of queries and keys are rotated by an angle.",
            "The angle grows with the position, at a speed of its own for each pair of numbers.",
            "You need not do anything about it; phiconv writes what the runtime wants.",
        ),
        "arXiv:2104.09864",
        "all runtimes",
        ("rotary", "rotary-embedding"),
    ),
    "sliding window": Term(
        (
            "A token looks back at so many positions only, and not at the whole text.",
            "Phi-3-mini-4k has one of 2047.",
            "A runtime that does not heed it gives other answers beyond the window.",
        ),
        "arXiv:2004.05150",
        "Phi-3 models; see the pages of the formats",
        ("swa", "window"),
    ),
    "mixture of experts": Term(
        (
            "A model with many feed-forward parts, of which each token uses a few.",
            "All of them must be in memory, and few are read for a token: large, and fast.",
            "Phi-3.5-MoE has 16 experts and uses 2.",
        ),
        "arXiv:1701.06538",
        "all formats but LiteRT",
        ("moe", "experts", "expert", "router"),
    ),
    "embedding": Term(
        (
            "The matrix with a row of numbers for each token, where a model begins.",
            "The head, at its end, is as large; where both are one matrix it is called tied.",
            "Both get more bits than the layers in most recipes, since errors there cost much.",
        ),
        "arXiv:1608.05859",
        _EVERYWHERE,
        ("head", "lm-head", "output-matrix", "tied", "tied-embeddings"),
    ),
    "tokenizer": Term(
        (
            "What cuts text into tokens, the pieces that a model reads.",
            "It is a list of pieces and rules, in tokenizer.json or tokenizer.model beside the weights.",
            "Without it no runtime can use a model, so phiconv puts it into every output.",
        ),
        "SentencePiece and the tokenizers library",
        _EVERYWHERE,
        ("tokens", "token"),
    ),
    "chat template": Term(
        (
            "How a conversation is written as one text: which marks stand around each message.",
            "It comes with the model, and runtimes fill it in.",
            "A wrong one makes a good model talk nonsense.",
        ),
        "transformers",
        _EVERYWHERE,
        ("template", "jinja"),
    ),
    "adapter": Term(
        (
            "A small file of changes to a model, from fine-tuning; LoRA is the usual kind.",
            "--lora merges it into the model while that is converted.",
            "--adapter-only writes it by itself, for llama.cpp.",
        ),
        "arXiv:2106.09685",
        _EVERYWHERE,
        ("lora", "peft", "qlora"),
    ),
    "NPU": Term(
        (
            "A part of a processor that is made for neural networks.",
            "It computes fast with little power, on graphs of fixed sizes.",
            "phiconv writes for those of Qualcomm (--for windows-npu) and of Intel (--for intel-npu).",
        ),
        "makers of processors",
        "ONNX Runtime, OpenVINO",
        ("neural-processing-unit",),
    ),
    "target size": Term(
        (
            "How large an output may be: --target-size 2.2G, or --bpw 4.25.",
            "Each matrix gets the type by which predictions suffer least within that size.",
            "It fills a memory that lies between two recipes.",
        ),
        "phiconv; llama.cpp has a similar idea in pull request 15550",
        "GGUF, LiteRT, MLX, ONNX, OpenVINO, compressed-tensors",
        ("target-size", "mixture", "mixed-precision"),
    ),
    "dequantize": Term(
        (
            "Turning quantized weights back into 16-bit numbers.",
            "What rounding has lost stays lost.",
            "phiconv says so in a note where it does this.",
        ),
        "signal processing",
        _EVERYWHERE,
        ("dequantization",),
    ),
    "receipt": Term(
        (
            "A file beside an output that says what it was made of, and how.",
            "It has the sums of all files that went in and came out.",
            "phiconv verify checks an output against it.",
        ),
        "in-toto attestations",
        _EVERYWHERE,
        ("verify", "provenance"),
    ),
    "activations": Term(
        (
            "The numbers that flow through a model while it computes, as opposed to its weights.",
            "In names of recipes they are the a: w8a16 has weights of 8 bits and activations of 16.",
            "Most runtimes round them by themselves, so the file says nothing of it.",
        ),
        "neural networks in general",
        "compressed-tensors, ONNX for Qualcomm",
        ("activation",),
    ),
    "shard": Term(
        (
            "One of several files that a model's weights are cut into.",
            "An index, model.safetensors.index.json, says which tensor is where.",
            "Give phiconv the folder; --split-max-size makes shards of an output.",
        ),
        "transformers",
        "safetensors, GGUF, ONNX for browsers",
        ("shards", "sharded", "index"),
    ),
}
"""By name; `phiconv.guide.format_terms` has those of formats and of methods."""
