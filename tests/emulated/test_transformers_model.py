"""A small random model of Hugging Face transformers whose experts run in NVFP4, on the emulated device."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is not installed: .[transformers]")

import nvfp4_layer  # noqa: E402
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM  # noqa: E402
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig  # noqa: E402
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts  # noqa: E402
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeTopKRouter  # noqa: E402

import integrations.transformers as ours  # noqa: E402
from integrations import torch_experts  # noqa: E402

NEW = 4  # tokens

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "emulated_hopper"),
]


@pytest.fixture
def model(generator: torch.Generator) -> Qwen3MoeForCausalLM:
    """Two layers of random weights in bf16, of a size at which no two logits are nearly equal."""
    config = Qwen3MoeConfig(
        hidden_size=64, moe_intermediate_size=48, num_experts=4, num_experts_per_tok=2, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, vocab_size=40, decoder_sparse_step=1,
        max_position_embeddings=64, eos_token_id=None, pad_token_id=0)  # fmt: skip
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 2 * parameter.shape[-1] ** -0.5, generator=generator)
    ours.register()
    return model


class Margins:
    """By how much a row's closest decision was decided: of logits of tokens, and of a router's, of which the hidden
    states' errors change fewer digits."""

    def __init__(self, model: Qwen3MoeForCausalLM, rows: int) -> None:
        self.least, self._top_k = torch.full((rows,), torch.inf), model.config.num_experts_per_tok
        for module in model.modules():
            if isinstance(module, Qwen3MoeTopKRouter):
                module.register_forward_hook(lambda module, given, out: self.note(out[0], self._top_k))

    def note(self, logits: torch.Tensor, chosen: int) -> None:
        ordered = logits.float().sort(dim=-1, descending=True).values
        margins = ordered[..., chosen - 1] - ordered[..., chosen]
        self.least = torch.minimum(self.least, margins.reshape(len(self.least), -1).amin(dim=1))


def generate(model: Qwen3MoeForCausalLM, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens, and the logits that chose them."""
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False,
                         output_logits=True, return_dict_in_generate=True)  # fmt: skip
    return out.sequences[:, prompt.shape[1] :], torch.stack(out.logits, dim=1)


def dequantized(model: Qwen3MoeForCausalLM) -> Qwen3MoeForCausalLM:
    """With torch's own loop over experts, whose weights are what is multiplied of them."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Qwen3MoeExperts):
            for weights in (module.gate_up_proj, module.down_proj):
                weights.data = nvfp4_layer.values(torch_experts.quantized(weights.data)).to(weights.dtype)
    model.set_experts_implementation("eager")
    return model


def test_greedy_tokens_are_those_of_the_reference(model: Qwen3MoeForCausalLM, generator: torch.Generator) -> None:
    """Of the prompts whose tokens are decided most clearly; other experts give other tokens."""
    reference, prompts = dequantized(model), torch.randint(0, 40, (48, 3), generator=generator)
    margins = Margins(reference, len(prompts))
    expected, logits = generate(reference, prompts)
    margins.note(logits, 1)
    clear = margins.least.topk(2).indices
    model.set_experts_implementation(ours.NAME)
    found, _ = generate(model, prompts[clear])
    assert torch.equal(found, expected[clear])
    other, _ = generate(dequantized(with_other_experts(model)), prompts[clear])
    assert not torch.equal(other, found)


def with_other_experts(model: Qwen3MoeForCausalLM) -> Qwen3MoeForCausalLM:
    """The model, in which each expert's second matrix is now another one's."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Qwen3MoeExperts):
                module.down_proj.copy_(module.down_proj.flip(0).clone())
    return model


def test_weights_may_be_given_up(model: Qwen3MoeForCausalLM, generator: torch.Generator) -> None:
    """Prepared before the first call, the model gives the same logits without them."""
    model.set_experts_implementation(ours.NAME)
    prompt = torch.randint(0, 40, (1, 3), generator=generator)
    with torch.no_grad():
        before = model(prompt).logits
        assert ours.prepare(model, release=True) == 2
        assert not sum(module.down_proj.numel() for module in model.modules() if isinstance(module, Qwen3MoeExperts))
        assert torch.equal(model(prompt).logits, before)


def test_another_gate_is_refused() -> None:
    """As gpt-oss has it; what a module's class says of itself is asked before anything is quantised."""
    module = GptOssExperts(GptOssConfig(hidden_size=64, intermediate_size=64, num_local_experts=2))
    with pytest.raises(NotImplementedError, match="GptOssExperts: has_bias is True"):
        ours.experts_forward(module, torch.zeros(1, 64), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
