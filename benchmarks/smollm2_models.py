"""SmolLM2-135M-Instruct for the sides of a benchmark: the same weights as each program reads them."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"m1jax": "m1jax", "torch": "transformers", "vllm": "vLLM (CPU)", "llama": "llama.cpp"}


def write_models(folder: Path) -> Path:
    """Writes `ours`, a Baichuan-M1 checkpoint, and `theirs`, a Llama, into a folder; the GGUF file that both are of."""
    sys.path.insert(0, str(ROOT))
    from tests.convert import smollm2

    gguf = smollm2.extract(folder)
    for name in ("ours", "theirs"):
        (folder / name).mkdir()
        smollm2.write_tokenizer(gguf, folder / name)
    smollm2.convert(gguf, folder / "ours")
    smollm2.llama(gguf).save_pretrained(folder / "theirs")
    return gguf


def write_gguf(source: Path, target: Path, dtype: str) -> None:
    """A GGUF file with dequantised matrices in a dtype; vectors stay float32, as llama.cpp wants them."""
    import gguf
    from gguf.quants import dequantize, quantize

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind, *inner = entry.types
            writer.add_key_value(name, entry.contents(), kind, inner[0] if inner else None)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if dtype == "bfloat16" and values.ndim > 1:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def open_transformers(cell: dict[str, Any]) -> Any:
    """The Llama in `theirs` of a cell's folder, in its dtype, with as many threads as there are cores."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    dtype = getattr(torch, cell["dtype"])
    return AutoModelForCausalLM.from_pretrained(Path(cell["folder"]) / "theirs", dtype=dtype).eval()
