"""A mixture of experts of Hugging Face transformers with its experts in NVFP4: register, ask by name, generate.

The model is a small one of Qwen3-MoE with random weights. A checkpoint is loaded with
``AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, experts_implementation="block_scaled")``.
"""

import os

import options
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

asked = options.parse(__doc__)
device = "cpu" if options.emulated(asked) else "cuda"
os.environ["LOADER_EMULATED_ARCH"] = asked.emulate or "90a"

from integrations.transformers import NAME, prepare, register  # noqa: E402  ops are those of the packs

torch.manual_seed(asked.seed)
config = Qwen3MoeConfig(
    hidden_size=64, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2, num_hidden_layers=2, vocab_size=64,
    num_attention_heads=2, num_key_value_heads=1, head_dim=32, decoder_sparse_step=1, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
model = Qwen3MoeForCausalLM(config).to(device, torch.bfloat16).eval()
prompt = torch.randint(0, 64, (1, 4), device=device)
model.set_experts_implementation("eager")  # transformers' own, in bf16
with torch.no_grad():
    before = model(prompt).logits.double()

register()
model.set_experts_implementation(NAME)
print(f"{prepare(model)} layers of experts are in NVFP4")
with torch.no_grad():
    after = model(prompt).logits.double()
tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
print(f"seed {asked.seed} on {device}: tokens {tokens[0, 4:].tolist()} follow {prompt[0].tolist()}")
error = (after - before).norm() / before.norm()
print(f"relative error of the logits against weights in bf16: {error:.1e}")
assert error < 0.2  # of weights rounded to NVFP4
