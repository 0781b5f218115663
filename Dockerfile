# The lab on one NVIDIA GPU. Untested: it was written without a machine that builds images.
#
#     docker build -t sft_lab .
#     docker run --rm -it --gpus all -v "$PWD/mlruns:/work/mlruns" -v ~/.cache/huggingface:/home/lab/.cache/huggingface \
#         sft_lab fit --config configs/qwen3_0.6b/dmt.yaml
#
# Generated code is isolated by namespaces, which Docker's default seccomp profile forbids. Either allow them,
# --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or take the container as the boundary:
# --evaluation.benchmarks.humaneval.init_args.sandbox limited.
FROM python:3.12-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap git util-linux \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 lab

WORKDIR /opt/sft_lab
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY sft_lab sft_lab
COPY callbacks callbacks
COPY configs configs
# torch's wheels for Linux bring their CUDA libraries; the host needs the driver and its container toolkit.
RUN pip install --no-cache-dir -c constraints.txt ".[judge,study]"

USER lab
WORKDIR /work
ENTRYPOINT ["python", "-m", "sft_lab"]
CMD ["doctor"]
