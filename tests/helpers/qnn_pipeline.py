"""A folder for Qualcomm's processors, computed as ONNX Runtime GenAI does, on the CPU or on the simulator.

The simulator is in a package of its own, beside another ONNX Runtime: so this is also a script for a Python
that has both.

    python qnn_pipeline.py FOLDER ids.npy logits.npy [--steps N] [--simulator] [--soc N]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 64
SIMULATOR = {"backend_type": "htp", "soc_model": "60"}


class Pipeline:
    """The graphs of a folder, with the cache between them.

    Args:
        ort: The module ``onnxruntime``.
        folder: The folder.
        options: Of the QNN provider; None for the CPU. No node of the layers may run on the CPU then.
    """

    def __init__(self, ort: Any, folder: Path, options: dict[str, str] | None = None) -> None:
        config = json.loads((folder / "genai_config.json").read_text())["model"]
        self.pad = config["pad_token_id"]
        self.context = config["context_length"]
        (self.stages,) = config["decoder"]["pipeline"]
        self.sessions = {}
        affinity = folder / "op_affinity.json"
        if options is not None:  # without it attention stays on the CPU
            affinity.write_text(json.dumps({"op_type": {"GroupQueryAttention": "htp"}}))
        for name, stage in self.stages.items():
            settings = ort.SessionOptions()
            settings.log_severity_level = 3
            # Products of integers as they are written, and not of activations in 8 bits.
            settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
            path = str(folder / stage["filename"])
            if options is None or "session_options" not in stage:
                self.sessions[name] = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
                continue
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            settings.add_provider_for_devices(_devices(ort), options | {"op_affinity": str(affinity)})
            self.sessions[name] = ort.InferenceSession(path, settings)
        self.cache: dict[str, Any] = {}

    def run(self, ids: Any, steps: int = 0) -> Any:
        """Logits of a text: in chunks of 64, the last ``steps`` tokens one by one."""
        self.cache = {}
        prompt, rows = len(ids) - steps, []
        for start in range(0, prompt, CHUNK):
            part = np.full(CHUNK, self.pad)
            count = min(CHUNK, prompt - start)
            part[:count] = ids[start : start + count]
            rows.append(self._pass(part, start, "run_on_prompt")[:count])
        rows += [self._pass(ids[at : at + 1], at, "run_on_token_gen") for at in range(prompt, len(ids))]
        return np.concatenate(rows)

    def _pass(self, ids: Any, start: int, when: str) -> Any:
        values = {
            "input_ids": ids[None].astype(np.int32),
            "past_seq_len": np.array([[start + len(ids) - 1]], np.int32),
            "total_seq_len": np.array([self.context], np.int32),
        }
        for name, stage in self.stages.items():
            if not stage.get(when, True):
                continue
            session, feeds = self.sessions[name], {}
            for given in session.get_inputs():
                if given.name.startswith("past_key"):
                    dtype = np.float32 if given.type == "tensor(float)" else np.float16
                    feeds[given.name] = self.cache.get(given.name, np.zeros(given.shape, dtype))
                else:
                    feeds[given.name] = values[given.name]
            found = zip(stage["outputs"], session.run(stage["outputs"], feeds), strict=True)
            values |= found
            self.cache |= {
                n.replace("present", "past_key_values"): v
                for n, v in values.items()
                if n.startswith("present")
            }
        return values["logits"][0].astype(np.float64)


def _devices(ort: Any) -> list[Any]:
    import onnxruntime_qnn

    if not any(device.ep_name == "QNN" for device in ort.get_ep_devices()):
        ort.register_execution_provider_library("QNN", onnxruntime_qnn.get_library_path())
    return [device for device in ort.get_ep_devices() if device.ep_name == "QNN"][:1]


def main() -> None:
    """Computes the logits of a file of ids."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--simulator", action="store_true")
    parser.add_argument("--soc", default="60")
    given = parser.parse_args()
    import onnxruntime as ort

    options = {**SIMULATOR, "soc_model": given.soc} if given.simulator else None
    np.save(given.output, Pipeline(ort, given.folder, options).run(np.load(given.ids), given.steps))


if __name__ == "__main__":
    main()
