"""grouped_fp4 from torch: the current stream, a plan in a CUDA graph."""

import nvfp4
import torch

import loader

problem = nvfp4.routed_problem(seed=0, tokens=256, experts=32, top_k=4, n=512, k=1024)
inputs = {name: torch.from_numpy(array).cuda() for name, array in problem.inputs.items()}
out = torch.empty(problem.shape, dtype=torch.bfloat16, device="cuda")

# On torch's current stream. Packed FP4 is uint8, or torch.float4_e2m1fn_x2; scales are uint8 or torch.float8_e4m3fn.
loader.launch("grouped_fp4", **inputs, out=out)

# A plan does everything but the launch once; it may be captured, because nothing is loaded any more.
plan = loader.plan("grouped_fp4", **inputs, out=out)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    plan.launch()
out.zero_()
graph.replay()

error = (out.double().cpu() - torch.from_numpy(problem.expected)).norm() / torch.from_numpy(problem.expected).norm()
print(f"{plan.kernel} on {torch.cuda.get_device_name()}: relative error {error:.1e} (bf16 rounding is 1.7e-3)")
